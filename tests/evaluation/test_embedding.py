"""The map is the real images', the same each time; generated ones land among theirs."""

import numpy as np
import pytest
from PIL import Image

from medjax.errors import UserError
from medjax.evaluation.embedding import embed, save_umap_page

pytest.importorskip("umap")


def clouds(count, seed, distance=8.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    centres = distance * np.eye(2, 6)
    return (centres[labels] + rng.normal(size=(count, 6))).astype(np.float32), labels


# Compiling UMAP's loops takes most of the time.
@pytest.mark.release
def test_generated_images_land_in_their_class_and_do_not_change_the_map():
    real, labels = clouds(120, 0)
    generated, asked = clouds(40, 1)
    alone, nothing = embed(real, seed=3)
    places, landed = embed(real, generated, seed=3)
    assert nothing is None
    assert landed is not None
    np.testing.assert_array_equal(alone, places)
    distances = np.linalg.norm(landed[:, None] - places[None], axis=-1)
    assert (labels[distances.argmin(1)] == asked).mean() > 0.95


@pytest.mark.release
def test_the_map_is_a_function_of_the_seed():
    real, _ = clouds(60, 0)
    first, again, other = (embed(real, real[:9], seed=seed) for seed in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.release
def test_units_do_not_matter():
    real, _ = clouds(60, 0)
    scaled, _ = embed(real * np.float32(2) ** np.arange(6, dtype=np.float32) + 0)
    np.testing.assert_allclose(embed(real)[0], scaled, atol=1e-3)


@pytest.mark.release
def test_few_images_have_a_map_and_fewer_an_error():
    real, _ = clouds(5, 0)
    assert np.isfinite(embed(real)[0]).all()
    with pytest.raises(UserError, match="at least 5 real images, got 4"):
        embed(real[:4])


@pytest.mark.release
def test_a_page_shows_generated_images_over_the_real_ones(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "made" / "umap.png"
    pages = []
    for generated in (clouds(20, 1), (None, None)):
        save_umap_page(
            *clouds(60, 0), *generated, ["AD", "NC"], path, 0, {"silhouette": 0.5}
        )
        with Image.open(path) as page:
            pages.append(np.asarray(page.convert("RGB")))
    both, real = ((page < 40).all(-1).sum() for page in pages)
    # Crosses have black edges, dots have none.
    assert both > real + 100
