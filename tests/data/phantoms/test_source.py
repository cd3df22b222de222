import pickle

import numpy as np
import pytest

from medjax.data.phantoms import KINDS, PhantomSource
from medjax.errors import UserError


@pytest.mark.parametrize("kind", KINDS)
def test_splits_and_seeds_share_no_phantom(kind):
    sources = [
        PhantomSource(split, 8, 4, seed, kind)
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    records = [source[i] for source in sources for i in range(4)]
    assert len({record["id"] for record in records}) == len(records)
    assert len({str(record["parameters"]) for record in records}) == len(records)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_has_what_every_source_gives(kind):
    source = PhantomSource("train", 16, 6, kind=kind)
    again = pickle.loads(pickle.dumps(source))
    for index in range(6):
        record = source[index]
        assert record["image"].shape == (16, 16, 3)
        assert record["image"].dtype == np.uint8
        assert set(record["labels"]) <= set(KINDS[kind].label_names)
        np.testing.assert_array_equal(record.pop("image"), again[index].pop("image"))
        assert set(record) == {"text", "labels", "id", "parameters"}


def test_captions_of_knees_and_brains_are_true():
    knees, brains = (PhantomSource("test", 8, 12, kind=k) for k in ("knee", "brain"))
    for index in range(12):
        assert knees[index]["text"] == "sagittal MRI of a knee"
        assert knees[index]["labels"] == ()
        record = brains[index]
        large = record["parameters"]["ventricle_share"] > 0.075
        assert record["labels"] == (("AD",) if large else ("NC",))
        size = "large" if large else "small"
        assert record["text"] == f"axial MRI of a brain with {size} ventricles"


def test_an_unknown_kind_is_told_in_one_line():
    with pytest.raises(UserError, match="no kind 'brian'.*did you mean 'brain'"):
        PhantomSource("train", 8, 1, kind="brian")
