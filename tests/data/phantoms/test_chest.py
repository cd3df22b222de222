import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from medjax.data.captions import caption
from medjax.data.phantoms import (
    CARDIOMEGALY_RATIO,
    FINDINGS,
    ChestParameters,
    PhantomSource,
    draw_parameters,
    make_pose,
    render,
)
from medjax.errors import UserError

RANGES = {
    "age": (18, 90),
    "heart_width_ratio": (0.38, 0.70),
    "habitus": (0, 1),
    "inspiration": (0, 1),
    "exposure": (-1, 1),
    "rotation_degrees": (-12, 12),
    "scale": (0.7, 1.1),
    "shift_x": (-0.1, 0.1),
    "shift_y": (-0.1, 0.1),
    "arm_degrees": (8, 40),
    "stomach_gas_cm": (0, 2.5),
}
THORAX_CM = 27.2


def upright(parameters: ChestParameters, **changes) -> ChestParameters:
    pose = {"rotation_degrees": 0.0, "scale": 1.0, "shift_x": 0.0, "shift_y": 0.0}
    return dataclasses.replace(parameters, **{**pose, **changes})


def difference(index: int, finding: str, size: int = 128):
    """Return how much a finding changes a phantom, with the pixels' body x and y."""
    well, ill = draw_parameters(3, index, []), draw_parameters(3, index, [finding])
    before, after = (render(upright(p), size).astype(int) for p in (well, ill))
    centres = (np.arange(size) + 0.5) * 40 / size - 20
    return after - before, centres[None, :], centres[:, None], ill


def test_a_phantom_is_a_function_of_seed_and_index():
    first, again = (PhantomSource("train", 32, 3)[1] for _ in range(2))
    np.testing.assert_array_equal(first.pop("image"), again.pop("image"))
    assert first == again
    images = [render(draw_parameters(s, i), 32) for s in (0, 1) for i in (0, 1)]
    for a, b in itertools.combinations(images, 2):
        assert np.abs(a.astype(int) - b).mean() > 2


def test_what_numpy_drew_before_does_not_matter():
    expected = render(draw_parameters(0, 5), 32)
    np.random.default_rng(0).random(7)
    np.random.random(3)
    np.testing.assert_array_equal(render(draw_parameters(0, 5), 32), expected)


def test_drawn_parameters_fill_their_ranges_and_never_leave_them():
    drawn = [draw_parameters(0, i) for i in range(300)]
    for name, (low, high) in RANGES.items():
        values = [getattr(p, name) for p in drawn]
        assert low <= min(values) and max(values) <= high, name
        assert max(values) - min(values) > 0.85 * (high - low), name
    assert {p.view for p in drawn} == {"PA", "AP"}
    assert {p.sex for p in drawn} == {"F", "M"}
    for p in drawn:
        assert p.effusion is None or 5.5 <= p.effusion.height_cm <= 11
        assert p.nodule is None or 0.8 <= p.nodule.radius_cm <= 1.5
        assert p.pneumothorax is None or 2 <= p.pneumothorax.width_cm <= 5


@pytest.mark.parametrize("count", range(len(FINDINGS) + 1))
def test_exactly_the_findings_asked_for_are_there(count):
    for index, asked in enumerate(itertools.combinations(FINDINGS, count)):
        parameters = draw_parameters(0, index, asked)
        assert parameters.labels == asked
        assert set(parameters.sides) == set(asked) - {"Cardiomegaly"}


def test_random_findings_are_neither_always_there_nor_never():
    drawn = [draw_parameters(0, i).labels for i in range(400)]
    for finding in FINDINGS:
        assert 0.15 < np.mean([finding in labels for labels in drawn]) < 0.3
    assert 0.25 < np.mean([labels == () for labels in drawn]) < 0.5


def test_labels_follow_from_the_parameters():
    for index in range(100):
        p = draw_parameters(1, index)
        enlarged = p.heart_width_ratio > CARDIOMEGALY_RATIO[p.view]
        assert ("Cardiomegaly" in p.labels) == enlarged
        assert ("Effusion" in p.labels) == (p.effusion is not None)
        assert ("Nodule" in p.labels) == (p.nodule is not None)
        assert ("Pneumothorax" in p.labels) == (p.pneumothorax is not None)


def test_a_body_stays_the_same_with_other_findings():
    well, ill = draw_parameters(0, 7, []), draw_parameters(0, 7, ["Effusion"])
    assert dataclasses.replace(ill, effusion=None) == well


def test_an_unknown_finding_is_an_error_that_names_the_nearest():
    for arguments in ({"findings": ["Efusion"]}, {"possible": ["Efusion"]}):
        with pytest.raises(UserError, match="did you mean 'Effusion'"):
            draw_parameters(0, 0, **arguments)


WITHOUT_PNEUMOTHORAX = FINDINGS[:-1]


def test_a_finding_that_is_left_out_is_in_no_phantom():
    for index in range(2000):
        p = draw_parameters(0, index, possible=WITHOUT_PNEUMOTHORAX)
        text = caption(p.labels, p.view, p.age, p.sex, sides=p.sides)
        assert "Pneumothorax" not in p.labels and "pneumothorax" not in text


@pytest.mark.parametrize("left_out", FINDINGS)
def test_leaving_a_finding_out_changes_only_those_that_had_it(left_out):
    possible = tuple(name for name in FINDINGS if name != left_out)
    for index in range(100):
        drawn = draw_parameters(0, index)
        kept = [name for name in drawn.labels if name != left_out]
        rest = draw_parameters(0, index, possible=possible)
        assert rest == draw_parameters(0, index, kept)
        assert (rest == drawn) == (left_out not in drawn.labels)


@pytest.mark.ci
def test_a_source_without_a_finding_is_the_same_where_it_was_not_drawn():
    every = PhantomSource("train", 16, 30)
    some = PhantomSource("train", 16, 30, findings=WITHOUT_PNEUMOTHORAX)
    changed = 0
    for whole, rest in zip(every, some, strict=True):
        assert whole["id"] == rest["id"]
        same = np.array_equal(whole["image"], rest["image"])
        had_it = "Pneumothorax" in whole["labels"]
        assert same == (whole["text"] == rest["text"]) == (not had_it)
        assert set(whole["labels"]) - set(rest["labels"]) <= {"Pneumothorax"}
        assert "Pneumothorax" not in rest["labels"]
        changed += had_it
    assert 0 < changed < 30


@pytest.mark.parametrize("index", range(4))
def test_small_images_are_large_ones_seen_from_afar(index):
    parameters = draw_parameters(0, index)
    small = render(parameters, 64).astype(float)
    large = render(parameters, 256).reshape(64, 4, 64, 4).mean((1, 3))
    assert np.abs(small - large).mean() < 1.5
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.998


@pytest.mark.parametrize("size", [8, 33, 100, 129])
def test_any_size_gives_a_plausible_range_of_gray(size):
    image = render(draw_parameters(0, 1), size)
    assert image.shape == (size, size) and image.dtype == np.uint8
    low, high = np.percentile(image, [2, 98])
    assert low < 40 and high > 200


def test_the_heart_is_as_wide_as_its_parameter_says():
    body = upright(draw_parameters(0, 1, []), inspiration=1.0, texture_seed=0)
    # Each heart against the narrowest one: where it covers lung, the image brightens.
    ratios = [0.45, 0.52, 0.60, 0.68]
    size = 256
    base, *larger = (
        render(dataclasses.replace(body, heart_width_ratio=ratio), size).astype(int)
        for ratio in [0.38, *ratios]
    )
    for ratio, image in zip(ratios, larger, strict=True):
        columns = np.flatnonzero(((image - base) > 20).sum(axis=0) >= 3)
        width = (columns[-1] - columns[0] + 1) * 40 / size
        assert width / THORAX_CM == pytest.approx(ratio, abs=0.03)


def test_an_effusion_whitens_the_lower_lung_of_its_side_only():
    for index in range(4):
        change, x, y, ill = difference(index, "Effusion")
        sign = 1 if ill.effusion.side == "left" else -1
        there = (sign * x > 1) & (y > 13 - ill.effusion.height_cm - 1)
        assert change[there].max() > 60
        assert np.abs(change[~there]).max() <= 3


def test_a_nodule_brightens_its_place_only():
    for index in range(4):
        change, x, y, ill = difference(index, "Nodule")
        nodule = ill.nodule
        distance = np.sqrt((x - nodule.x_cm) ** 2 + (y - nodule.y_cm) ** 2)
        assert change[distance < nodule.radius_cm / 2].min() > 10
        assert np.abs(change[distance > nodule.radius_cm + 0.7]).max() <= 2
        assert (nodule.x_cm > 0) == (nodule.side == "left")


def test_a_pneumothorax_darkens_the_outer_lung_and_condenses_the_inner():
    for index in range(4):
        change, x, y, ill = difference(index, "Pneumothorax")
        sign = 1 if ill.pneumothorax.side == "left" else -1
        there = (sign * x > 0) & (y > -14.5) & (y < 14)
        assert change[there].min() < -25 and change[there].max() > 5
        assert np.abs(change[~there]).max() <= 2
        # It is widest on top, and what is left of the lung lies below.
        assert change[there & (y < -5)].sum() < 0 < change[there & (y > 0)].sum()


def test_cardiomegaly_changes_the_heart_and_not_the_apices():
    change, x, y, _ = difference(0, "Cardiomegaly")
    assert change.max() > 50
    assert np.abs(change[np.broadcast_to(y < -9, change.shape)]).max() <= 3
    assert np.abs(change[np.broadcast_to(np.abs(x) > 15, change.shape)]).max() <= 3


def test_the_pose_moves_the_body():
    body = upright(draw_parameters(0, 1, []), texture_seed=0)
    image = render(body, 64).astype(int)
    moved = render(dataclasses.replace(body, shift_x=4 / 64, shift_y=-2 / 64), 64)
    assert np.abs(moved[:-2, 4:].astype(int) - image[2:, :-4]).mean() < 1
    # Clockwise: what was straight above the origin moves to the right.
    turned = make_pose(dataclasses.replace(body, rotation_degrees=12.0), 64)
    ((column, row),) = turned.to_pixels(np.array([[0.0, -10.0]]))
    assert column > 31.5 and row < 31.5
    larger = make_pose(dataclasses.replace(body, scale=1.1), 64)
    assert larger.pixels_per_cm == pytest.approx(1.1 * 64 / 40)


def test_lungs_are_dark_and_bone_and_abdomen_bright():
    body = upright(draw_parameters(0, 1, []), texture_seed=0)
    image = render(body, 128).astype(float)

    def mean(x: float, y: float) -> float:
        column, row = (
            make_pose(body, 128).to_pixels(np.array([[x, y]], float))[0].astype(int)
        )
        return float(image[row - 3 : row + 4, column - 3 : column + 4].mean())

    background, lung = mean(18, -18), (mean(-7, -3) + mean(7, -5)) / 2
    assert background < 40
    assert background + 30 < lung < mean(0, 4) - 60
    assert lung < mean(0, 17) - 60


def test_captions_and_labels_of_a_record_are_true():
    source = PhantomSource("validation", 16, 20)
    assert len(source) == 20
    for index in range(20):
        record = source[index]
        assert record["image"].shape == (16, 16, 3)
        assert record["image"].dtype == np.uint8
        text, parameters = record["text"], record["parameters"]
        for finding in ("effusion", "nodule", "pneumothorax"):
            found = parameters[finding]
            assert (finding in text) == (finding.title() in record["labels"])
            assert (finding in text) == (found is not None)
            if found:
                lung = {"effusion": "pleural ", "nodule": "lung "}.get(finding, "")
                assert f"{found['side']} {lung}{finding}" in text
        assert ("cardiomegaly" in text) == ("Cardiomegaly" in record["labels"])
        assert ("without abnormal findings" in text) == (record["labels"] == ())
        assert f"{parameters['view']} view, {parameters['age']}-year-old" in text
        assert text.endswith("woman" if parameters["sex"] == "F" else "man")


def test_splits_and_seeds_share_no_phantom():
    sources = [
        PhantomSource(split, 8, 6, seed)
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    records = [source[i] for source in sources for i in range(6)]
    assert len({record["id"] for record in records}) == len(records)
    assert len({str(record["parameters"]) for record in records}) == len(records)


def test_more_phantoms_leave_the_first_ones_as_they_are():
    few, many = (PhantomSource("test", 8, count)[2] for count in (3, 300))
    assert few["id"] == many["id"] and few["parameters"] == many["parameters"]


def test_a_source_is_a_sequence_that_pickles():
    source = pickle.loads(pickle.dumps(PhantomSource("train", 8, 2)))
    assert len(list(source)) == 2
    assert source[np.int64(1)]["id"] == source[1]["id"]
    for index in (2, -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("training", 8, 1), "did you mean 'train'"),
        (("train", 7, 1), "phantoms with size 7: expected at least 8"),
        (("train", 8, -1), "phantoms with count -1"),
        (("train", 8, 1, -1), "phantoms with seed -1"),
        (("train", 8, 1, 0, "chests"), "did you mean 'chest'"),
        (("train", 8, 1, 0, "chest", ("Nodules",)), "did you mean 'Nodule'"),
    ],
)
def test_a_source_that_cannot_be_is_told_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        PhantomSource(*arguments)


def edges(image):
    import cv2

    return cv2.Canny(cv2.GaussianBlur(image, (0, 0), 1.0), 100, 200) > 0


def agreement(first, second) -> float:
    """Return the F1 of two edge maps, a pixel of displacement allowed."""
    import cv2

    near = [
        cv2.dilate(e.astype(np.uint8), np.ones((3, 3))) > 0 for e in (first, second)
    ]
    precision = (first & near[1]).sum() / first.sum()
    recall = (second & near[0]).sum() / second.sum()
    return 2 * precision * recall / (precision + recall)


def test_edges_tell_phantoms_apart_and_withstand_noise():
    images = [render(draw_parameters(0, i), 64) for i in range(8)]
    noise = np.random.default_rng(0).normal(0, 4, (8, 64, 64))
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
    own = [agreement(edges(a), edges(b)) for a, b in zip(images, noisy, strict=True)]
    others = [
        agreement(edges(a), edges(b)) for a, b in itertools.combinations(images, 2)
    ]
    assert min(edges(image).sum() for image in images) > 80
    assert np.mean(own) > 0.9
    assert np.mean(others) < 0.5
