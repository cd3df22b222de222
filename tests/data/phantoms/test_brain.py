import dataclasses
import itertools

import numpy as np
import pytest

from medjax.data.phantoms import (
    DIAGNOSES,
    VENTRICLE_SHARE_LIMIT,
    draw_brain,
    render_brain,
)
from medjax.data.phantoms.brain.cavities import ventricles
from medjax.data.phantoms.brain.cortex import inside_of_skull
from medjax.data.phantoms.brain.parameters import FIELD_CM
from medjax.data.phantoms.curves import signed_area
from medjax.data.phantoms.layers import coverage
from medjax.data.phantoms.magnet import make_pose

RANGES = {
    "ventricle_share": (0.03, 0.14),
    "sulcus_cm": (0.08, 0.24),
    "width_cm": (12.6, 14.0),
    "length_cm": (15.6, 17.4),
    "level": (0, 1),
    "asymmetry": (-0.15, 0.15),
    "scalp_cm": (0.4, 0.7),
    "bone_cm": (0.55, 0.75),
    "contrast": (0, 1),
}
SIZE = 192


def still(brain, **changes):
    """Return a brain without noise and shading."""
    coil = {"shading_x": 0.0, "shading_y": 0.0, "noise": 0.0}
    scan = dataclasses.replace(brain.scan, **coil)
    return dataclasses.replace(brain, scan=scan, **changes)


def shares(brain, outlines):
    """Return which share of each pixel is in outlines."""
    return coverage(make_pose(brain.scan, SIZE, FIELD_CM), outlines)


def ventricle_pixels(brain):
    brain_cm2 = abs(signed_area(inside_of_skull(brain)))
    return shares(brain, ventricles(brain, brain_cm2))


def test_a_brain_is_a_function_of_seed_and_number():
    assert draw_brain(3, 7) == draw_brain(3, 7)
    brains = [draw_brain(seed, number) for seed in (0, 1) for number in (0, 1)]
    images = [render_brain(brain, 32) for brain in brains]
    np.testing.assert_array_equal(images[0], render_brain(brains[0], 32))
    for a, b in itertools.combinations(images, 2):
        assert np.abs(a.astype(int) - b).mean() > 2


def test_drawn_parameters_fill_their_ranges_and_never_leave_them():
    drawn = [draw_brain(0, number) for number in range(300)]
    for name, (low, high) in RANGES.items():
        values = [getattr(brain, name) for brain in drawn]
        assert low <= min(values) and max(values) <= high, name
        assert max(values) - min(values) > 0.85 * (high - low), name


def test_both_classes_are_drawn_and_apart():
    drawn = [draw_brain(0, number) for number in range(300)]
    assert 0.4 < np.mean([brain.diagnosis == "AD" for brain in drawn]) < 0.6
    for brain in drawn:
        above = brain.ventricle_share - VENTRICLE_SHARE_LIMIT
        assert abs(above) >= 0.02 and (above > 0) == (brain.diagnosis == "AD")


def test_the_class_asked_for_changes_ventricles_and_sulci_only():
    ill, well = (draw_brain(0, 5, diagnosis) for diagnosis in DIAGNOSES)
    assert (ill.diagnosis, well.diagnosis) == ("AD", "NC")
    changed = {"ventricle_share": 0.05, "sulcus_cm": 0.1}
    assert dataclasses.replace(ill, **changed) == dataclasses.replace(well, **changed)
    assert ill.ventricle_share > well.ventricle_share + 0.03
    assert draw_brain(0, 5) in (ill, well)


@pytest.mark.parametrize("number", range(6))
def test_ventricles_have_the_area_that_their_parameter_says(number):
    brain = draw_brain(2, number)
    inside = shares(brain, [inside_of_skull(brain)]).sum()
    found = ventricle_pixels(brain).sum() / inside
    assert found == pytest.approx(brain.ventricle_share, rel=0.01)


@pytest.mark.parametrize("number", range(3))
def test_wider_ventricles_darken_where_they_are_and_nothing_else(number):
    brain = still(draw_brain(1, number, "NC"))
    wide = dataclasses.replace(brain, ventricle_share=0.13)
    before, after = (render_brain(b, SIZE).astype(int) for b in (brain, wide))
    there = ventricle_pixels(wide) - ventricle_pixels(brain) > 0.9
    assert there.sum() > 500
    # Where sulci reach, it may have been dark before.
    assert np.median((before - after)[there]) > 90
    assert np.abs(before - after)[ventricle_pixels(wide) < 1e-6].max() == 0


def test_ventricles_lie_beside_the_midline_and_inside_the_brain():
    for number in range(10):
        brain = draw_brain(3, number, "AD")
        inside = inside_of_skull(brain)
        left, right, _ = ventricles(brain, abs(signed_area(inside)))
        assert left[:, 0].max() < 0 < right[:, 0].min()
        for outline in (left, right):
            assert (np.abs(outline) < np.abs(inside).max(axis=0) - 2).all()


@pytest.mark.parametrize("number", range(4))
def test_small_images_are_large_ones_seen_from_afar(number):
    drawn = draw_brain(0, number)
    brain = dataclasses.replace(drawn, scan=dataclasses.replace(drawn.scan, noise=0.0))
    small = render_brain(brain, 64).astype(float)
    large = render_brain(brain, 256).reshape(64, 4, 64, 4).mean((1, 3))
    assert np.abs(small - large).mean() < 2
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("size", [8, 33, 200])
def test_any_size_gives_a_plausible_range_of_gray(size):
    image = render_brain(draw_brain(0, 1), size)
    assert image.shape == (size, size) and image.dtype == np.uint8
    low, high = np.percentile(image, [2, 98])
    assert low < 40 and high > 130


def test_wider_sulci_darken_the_cortex_and_leave_the_middle():
    brain = still(draw_brain(0, 2, "NC"))
    narrow, wide = (
        render_brain(dataclasses.replace(brain, sulcus_cm=cm), SIZE).astype(int)
        for cm in (0.08, 0.24)
    )
    middle = shares(brain, [inside_of_skull(brain) * 0.3]) > 0.5
    cortex = (shares(brain, [inside_of_skull(brain)]) > 0.5) & ~middle
    assert (narrow - wide)[cortex].mean() > 5
    assert np.abs(narrow - wide)[middle].max() == 0


def test_tissues_are_as_bright_as_in_t1():
    brain = still(draw_brain(0, 2, "NC"), level=1.0, contrast=1.0)
    upright = {"rotation_degrees": 0.0, "scale": 1.0, "shift_x": 0.0, "shift_y": 0.0}
    brain = dataclasses.replace(brain, scan=dataclasses.replace(brain.scan, **upright))
    image = render_brain(brain, SIZE).astype(float)

    def at(x, y):
        column, row = (int((v / FIELD_CM + 0.5) * SIZE) for v in (x, y))
        return image[row - 1 : row + 2, column - 1 : column + 2]

    half, bone, scalp = brain.width_cm / 2, brain.bone_cm, brain.scalp_cm
    white, skull = at(3.2, 0).mean(), at(half + bone / 2, 0).min()
    fat, air = at(half + bone + scalp / 2, 0).max(), at(11, 0).max()
    assert air < 10 and skull < 60 and 150 < white < fat
    assert at(0, -0.47 * brain.length_cm).mean() < white - 50
