"""Chests are measured as they were drawn; agreement is counted as it is defined."""

import dataclasses
import math

import numpy as np
import pytest

from medjax.data.captions import caption
from medjax.data.phantoms import Effusion, Pneumothorax, draw_parameters, render
from medjax.errors import UserError
from medjax.evaluation import chest
from medjax.evaluation.chest import ChestMeasure, agreement, measure_chest, presence
from medjax.evaluation.chest_reader import fit_reader

# Neither what runs train on, 0, nor what the reader is fitted on, 1.
SEED = 2

# Bits of a state.
SIDES = {1: "left", 2: "right"}


@pytest.fixture
def quick_reader(monkeypatch):
    """A reader that is fitted on fewer phantoms, in two seconds."""
    monkeypatch.setattr(chest, "fit_reader", lambda: fit_reader(96))


def images_of(phantoms, size=64):
    gray = np.stack([render(p, size) for p in phantoms])
    return gray[..., None].astype(np.float32) / 127.5 - 1


def drawn(count):
    return [draw_parameters(SEED, i) for i in range(count)]


def well_body(index):
    """Return a body without findings, where a quick reader finds poses well."""
    pose = {"rotation_degrees": 3.0, "scale": 0.9, "shift_x": 0.02, "shift_y": 0.0}
    return dataclasses.replace(draw_parameters(SEED, index, []), **pose)


def texts_of(phantoms):
    return [caption(p.labels, p.view, p.age, p.sex, sides=p.sides) for p in phantoms]


def balanced_accuracies(images, phantoms):
    """Return the mean of sensitivity and specificity of each decision."""
    found = measure_chest(images)
    enlarged = np.array(["Cardiomegaly" in p.labels for p in phantoms])
    pairs = [(found.cardiomegaly, enlarged)]
    for name, states in (
        ("Effusion", found.effusion),
        ("Pneumothorax", found.pneumothorax),
    ):
        sides = np.array([p.sides.get(name, "") for p in phantoms])
        pairs += [((states & bit) > 0, sides == side) for bit, side in SIDES.items()]
    return [(said[true].mean() + (~said)[~true].mean()) / 2 for said, true in pairs]


@pytest.mark.release
def test_held_out_phantoms_are_read_as_they_were_drawn():
    from skimage.filters import gaussian

    phantoms = drawn(400)
    images = images_of(phantoms)
    assert min(balanced_accuracies(images, phantoms)) > 0.97
    noise = np.random.default_rng(0).normal(0, 0.03, images.shape)
    degraded = gaussian(images, (0, 0.7, 0.7, 0)) + noise
    assert min(balanced_accuracies(degraded, phantoms)) > 0.96
    scores = agreement(images, texts_of(phantoms))
    assert scores["caption_agreement"] > 0.96
    assert scores["caption_agreement_chance"] < 0.5


@pytest.mark.release
def test_a_reader_of_few_phantoms_does_well_already(quick_reader):
    phantoms = drawn(60)
    assert min(balanced_accuracies(images_of(phantoms), phantoms)) > 0.9


@pytest.mark.ci
def test_a_heart_that_grows_is_measured_wider_and_nothing_else_is(quick_reader):
    ratios = (0.40, 0.46, 0.52, 0.58, 0.64)
    for index in range(3):
        well = well_body(index)
        bodies = [dataclasses.replace(well, heart_width_ratio=r) for r in ratios]
        found = measure_chest(images_of(bodies))
        assert (np.diff(found.heart_width_ratio) > 0.02).all()
        np.testing.assert_allclose(found.heart_width_ratio, ratios, atol=0.08)
        assert not found.effusion.any() and not found.pneumothorax.any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_fluid_that_rises_is_measured_higher_on_its_side(quick_reader, side):
    heights, others = [], []
    for index in range(6):
        well = well_body(index)
        fluids = [None, *(Effusion(side, height) for height in (6.0, 8.0, 10.0))]
        bodies = [dataclasses.replace(well, effusion=fluid) for fluid in fluids]
        found = measure_chest(images_of(bodies))
        both = [found.effusion_left_cm, found.effusion_right_cm]
        heights.append(both[side == "right"])
        others.append(both[side == "left"])
    mean, other = np.mean(heights, axis=0), np.mean(others, axis=0)
    assert (np.diff(mean) > 0.5).all()
    assert mean[0] < 1 and mean[-1] > 7
    assert np.abs(other).max() < 1.5


@pytest.mark.parametrize(("bit", "side"), SIDES.items())
def test_air_outside_the_lung_is_measured_on_its_side(quick_reader, bit, side):
    for index in range(3):
        well = well_body(index)
        airs = [None, *(Pneumothorax(side, width) for width in (2.0, 3.5, 5.0))]
        bodies = [dataclasses.replace(well, pneumothorax=air) for air in airs]
        found = measure_chest(images_of(bodies))
        both = [found.pneumothorax_left_cm, found.pneumothorax_right_cm]
        assert (np.diff(both[side == "right"]) > 0.3).all()
        assert found.pneumothorax.tolist() == [0, bit, bit, bit]


def test_channels_contrast_and_size_do_not_matter(quick_reader):
    phantoms = drawn(16)
    images = images_of(phantoms)
    expected = measure_chest(images)
    for same in (np.repeat(images, 3, axis=-1), 0.5 * images + 0.2):
        found = measure_chest(same)
        for name, values in vars(expected).items():
            np.testing.assert_allclose(vars(found)[name], values, atol=1e-4)
    larger = measure_chest(images_of(phantoms, 128))
    off = larger.heart_width_ratio - expected.heart_width_ratio
    assert np.abs(off).max() < 0.05


def test_what_cannot_be_measured_is_told(quick_reader):
    images = images_of(drawn(2))
    with pytest.raises(UserError, match="2 images, 1 captions"):
        agreement(images, ["Chest X-ray without abnormal findings"])
    images[1, 3, 3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        measure_chest(images)


LARGE_LEFT, SMALL_RIGHT, SMALL_DRY, LARGE_BOTH = range(4)
HEART = [True, False, False, True]
CAPTIONS = {
    "Chest X-ray with cardiomegaly and left pleural effusion": [LARGE_LEFT],
    "Chest X-ray with right pleural effusion, PA view": [SMALL_RIGHT],
    "Chest X-ray with pleural effusion and left lung nodule": [SMALL_RIGHT],
    "Chest X-ray without abnormal findings": [SMALL_DRY],
    "Chest X-ray with lung nodule, AP view": [SMALL_DRY],
    "Chest X-ray with cardiomegaly and pleural effusion": [LARGE_LEFT, LARGE_BOTH],
}
# Only the last state has air outside a lung, on the right.
AIR = {
    "Chest X-ray with cardiomegaly and right pneumothorax": [LARGE_BOTH],
    "Chest X-ray with pneumothorax, AP view": [LARGE_BOTH],
    "Chest X-ray with left pneumothorax": [],
    "Chest X-ray without abnormal findings": [LARGE_LEFT, SMALL_RIGHT, SMALL_DRY],
}


@pytest.fixture
def measured(monkeypatch):
    """Let images, by their first pixel, be measured as one of four states."""
    wide = np.array(HEART)
    left = np.array([True, False, False, True])
    right = np.array([False, True, False, True])

    def measure(images):
        kind = images[:, 0, 0, 0].astype(int)
        return ChestMeasure(
            np.where(wide[kind], 0.6, 0.4),
            np.zeros(len(kind), bool),
            np.where(left[kind], 8.0, 0.0),
            np.where(right[kind], 8.0, 0.0),
            np.zeros(len(kind)),
            np.where(kind == LARGE_BOTH, 2.0, 0.0),
        )

    monkeypatch.setattr(chest, "measure_chest", measure)


def images_in(states):
    return np.array(states, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1))


@pytest.mark.parametrize("text", CAPTIONS)
@pytest.mark.parametrize("state", range(4))
def test_an_image_agrees_with_what_is_true_of_it_alone(measured, text, state):
    scores = agreement(images_in([state]), [text])
    assert scores["caption_agreement"] == (state in CAPTIONS[text])
    assert scores["heart_agreement"] == (HEART[state] == ("cardiomegaly" in text))
    assert math.isnan(scores["caption_agreement_chance"])


@pytest.mark.parametrize("text", AIR)
@pytest.mark.parametrize("state", range(4))
def test_a_pneumothorax_agrees_by_its_side(measured, text, state):
    scores = agreement(images_in([state]), [text])
    assert scores["pneumothorax_agreement"] == (state in AIR[text])


def test_presence_is_counted_where_it_is_asked_for_and_where_not(measured):
    texts = ["Chest X-ray with left pneumothorax"] * 2
    texts += ["Chest X-ray without abnormal findings"] * 4
    states = [LARGE_BOTH, SMALL_DRY, LARGE_BOTH, SMALL_DRY, SMALL_RIGHT, LARGE_LEFT]
    shares = presence(images_in(states), texts)
    assert shares["pneumothorax_presence"] == 1 / 2
    assert shares["pneumothorax_presence_unasked"] == 1 / 4
    assert math.isnan(shares["effusion_presence"])
    assert shares["effusion_presence_unasked"] == 4 / 6


def test_chance_is_agreement_with_the_captions_of_others(measured):
    texts = list(CAPTIONS)
    states = [LARGE_LEFT, SMALL_RIGHT, SMALL_DRY, SMALL_DRY, LARGE_BOTH, LARGE_BOTH]
    pairs = [[state in CAPTIONS[text] for text in texts] for state in states]
    scores = agreement(images_in(states), texts)
    assert scores["caption_agreement"] == pytest.approx(np.trace(pairs) / 6)
    others = (np.sum(pairs) - np.trace(pairs)) / 30
    assert scores["caption_agreement_chance"] == pytest.approx(others)
