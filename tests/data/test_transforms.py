import numpy as np
import pytest

from medjax.data.transforms import fit, loss_mask, pad, resize, same_aspect


def disc(height: int, width: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < radius**2
    return np.repeat(inside[:, :, None], 3, axis=2).astype(np.uint8) * 255


@pytest.mark.parametrize("mode", ["center_crop", "letterbox"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (20, 30)])
def test_a_disc_stays_a_disc(mode, height, width):
    content = fit(disc(height, width, min(height, width) // 3), 48, mode)
    inside = content[:, :, 0] > 127
    tall, wide = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert abs(int(tall) - int(wide)) <= 1


def test_stretch_squeezes_the_disc():
    inside = fit(disc(64, 128, 20), 48, "stretch")[:, :, 0] > 127
    assert inside.any(axis=1).sum() > 1.8 * inside.any(axis=0).sum()


@pytest.mark.parametrize("mode", ["center_crop", "letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(7, 31), (31, 7), (33, 32), (1, 90), (16, 16)])
def test_every_shape_fills_the_square(mode, shape):
    content = fit(np.full((*shape, 3), 9, np.uint8), 16, mode)
    assert pad(content, 16).shape == (16, 16, 3)
    if mode != "letterbox":
        assert content.shape == (16, 16, 3)


def test_the_mask_is_one_exactly_on_the_content():
    content = fit(np.full((20, 40, 3), 200, np.uint8), 16, "letterbox")
    mask = loss_mask(*content.shape[:2], 16)
    assert content.shape == (8, 16, 3)
    np.testing.assert_array_equal(mask[:, :, 0] > 0, pad(content, 16)[:, :, 0] > 0)


def test_shrinking_averages_every_pixel():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    blocks = image.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(image, 8, 8), blocks, atol=0.51)


def test_an_image_of_the_right_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(fit(image, 16, "center_crop"), image)


def test_aspects_are_compared_to_a_pixel():
    assert same_aspect((100, 150, 3), (33, 50, 3))
    assert same_aspect((1024, 768), (512, 384))
    assert not same_aspect((100, 150), (100, 100))
