import dataclasses
import itertools

import numpy as np
import pytest

from medjax.data.phantoms import KneeParameters, draw_knee, render_knee

RANGES = {
    "flexion_degrees": (0, 30),
    "cartilage_cm": (0.10, 0.30),
    "fluid": (0, 1),
    "fat_cm": (0.3, 1.4),
    "muscle": (0, 1),
    "slice_cm": (-1.2, 1.2),
    "contrast": (0, 1),
}
SIZE, FIELD_CM = 150, 15


def upright(**changes) -> KneeParameters:
    """Return a straight knee that faces left, in the middle, without noise."""
    drawn = draw_knee(0, 0)
    pose = {"rotation_degrees": 0.0, "scale": 1.0, "shift_x": 0.0, "shift_y": 0.0}
    coil = {"shading_x": 0.0, "shading_y": 0.0, "noise": 0.0}
    knee = dataclasses.replace(
        drawn,
        facing="left",
        flexion_degrees=0.0,
        slice_cm=-0.5,
        contrast=0.5,
        scan=dataclasses.replace(drawn.scan, **pose, **coil),
    )
    return dataclasses.replace(knee, **changes)


def render(**changes):
    return render_knee(upright(**changes), SIZE).astype(int)


def places():
    """Return x and y of the pixels, in cm of the upright knee."""
    centres = (np.arange(SIZE) + 0.5) * FIELD_CM / SIZE - FIELD_CM / 2
    return centres[None, :], centres[:, None]


def test_a_knee_is_a_function_of_seed_and_number():
    assert draw_knee(3, 7) == draw_knee(3, 7)
    knees = [draw_knee(seed, number) for seed in (0, 1) for number in (0, 1)]
    images = [render_knee(knee, 32) for knee in knees]
    np.testing.assert_array_equal(images[0], render_knee(knees[0], 32))
    for a, b in itertools.combinations(images, 2):
        assert np.abs(a.astype(int) - b).mean() > 2


def test_drawn_parameters_fill_their_ranges_and_never_leave_them():
    drawn = [draw_knee(0, number) for number in range(200)]
    for name, (low, high) in RANGES.items():
        values = [getattr(knee, name) for knee in drawn]
        assert low <= min(values) and max(values) <= high, name
        assert max(values) - min(values) > 0.85 * (high - low), name
    assert {knee.facing for knee in drawn} == {"left", "right"}


@pytest.mark.parametrize("number", range(4))
def test_small_images_are_large_ones_seen_from_afar(number):
    drawn = draw_knee(0, number)
    knee = dataclasses.replace(drawn, scan=dataclasses.replace(drawn.scan, noise=0.0))
    small = render_knee(knee, 64).astype(float)
    large = render_knee(knee, 256).reshape(64, 4, 64, 4).mean((1, 3))
    assert np.abs(small - large).mean() < 1
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("size", [8, 33, 200])
def test_any_size_gives_a_plausible_range_of_gray(size):
    image = render_knee(draw_knee(0, 1), size)
    assert image.shape == (size, size) and image.dtype == np.uint8
    low, high = np.percentile(image, [2, 98])
    assert low < 40 and high > 130


def test_a_knee_that_faces_right_is_the_mirror_image():
    # The texture of tissue is the scanner's, and stays.
    left, right = (render(facing=facing)[:, ::step] for facing, step in SIDES)
    assert np.abs(left - right).mean() < 5
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.99


SIDES = (("left", 1), ("right", -1))


def test_cartilage_changes_the_joint_only():
    thin, thick = render(cartilage_cm=0.1), render(cartilage_cm=0.3)
    x, y = places()
    joint = (np.abs(x + 0.8) < 5) & (y > -6) & (y < 4.6)
    change = np.abs(thick - thin)
    assert change[joint].max() > 80
    assert change[~joint].max() == 0


def test_thicker_cartilage_makes_more_of_it():
    # A knee that is dry: what is as bright as cartilage is no fluid then.
    areas = [
        ((image > 190) & (image < 230)).sum()
        for image in (render(cartilage_cm=cm, fluid=0.0) for cm in (0.1, 0.2, 0.3))
    ]
    assert areas[0] < areas[1] < areas[2]
    assert areas[2] > 1.5 * areas[0]


def test_fluid_brightens_joint_and_pouch():
    x, y = places()
    change = render(fluid=1.0) - render(fluid=0.0)
    pouch = (x > -4) & (x < -1) & (y > -7.4) & (y < -4)
    assert (change[pouch] > 40).sum() > 50
    assert change[np.broadcast_to(y > 2, change.shape)].max() == 0


def test_fat_and_muscle_widen_the_leg():
    def width(image):
        return (image[-20:] > 40).sum(axis=1).mean() * FIELD_CM / SIZE

    base = width(render(fat_cm=0.3, muscle=0.0))
    assert width(render(fat_cm=0.8, muscle=0.0)) > base + 0.4
    assert width(render(fat_cm=0.3, muscle=1.0)) > base + 0.4


def test_the_fibula_is_in_outer_slices_only():
    inner, middle, outer = (render(slice_cm=cm) for cm in (-1.2, 0.0, 1.2))
    x, y = places()
    fibula = (x > 2.5) & (x < 4) & (y > 2) & (y < 7)
    assert np.abs(middle - inner)[fibula].max() == 0
    assert np.abs(outer - inner)[fibula].max() > 60


def test_flexion_turns_thigh_and_shank_to_the_back():
    def middle(image, row):
        columns = np.flatnonzero(image[row] > 40)
        return (columns[0] + columns[-1]) / 2

    straight, bent = (render(flexion_degrees=d, fat_cm=0.3) for d in (0.0, 30.0))
    for row in (2, SIZE - 3):
        assert middle(bent, row) > middle(straight, row) + 5


def test_bone_is_lined_by_a_dark_cortex_and_menisci_are_dark():
    image = render()
    x, y = places()

    def darkest(left, right, top, bottom):
        there = (x > left) & (x < right) & (y > top) & (y < bottom)
        return image[there].min()

    marrow = image[
        np.broadcast_to((np.abs(x) < 0.5) & (np.abs(y + 3) < 0.5), (150,) * 2)
    ]
    assert 120 < marrow.mean() < 190
    assert darkest(-2, -1, -7, -6.4) < 60
    assert darkest(-2.5, -1.5, -0.4, 0.3) < 50
    assert darkest(2, 3, -0.5, 0.3) < 50
