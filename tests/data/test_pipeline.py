"""The stream is a function of seed and position, whoever computes it and how."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from medjax.data.config import ControlDataConfig, DataConfig
from medjax.data.edges import canny
from medjax.data.examples import make_example
from medjax.data.phantoms import FINDINGS, PhantomsConfig
from medjax.data.pipeline import (
    dataset_identity,
    dataset_metadata,
    make_batches,
    open_dataset,
    validation_batches,
)
from medjax.errors import UserError

CONFIG = ControlDataConfig(
    image_size=16,
    batch_size=4,
    canny_low=(20.0, 200.0),
    canny_high=(200.0, 900.0),
    workers=0,
    seed=3,
)
RECORDS = 10


@dataclasses.dataclass(frozen=True)
class Records:
    """Noise images; the caption is the index, in letters."""

    count: int = RECORDS
    height: int = 16
    width: int = 16

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        shape = (self.height, self.width, 3)
        return {
            "image": random.integers(0, 256, shape, np.uint8),
            "text": " ".join("abcdefghijklmnopqrst"[index]),
            "labels": (),
            "id": str(index),
            "parameters": {},
        }


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def indices(batches, tokenizer):
    """Return which records a stream holds, from their captions."""
    letters = [tokenizer.decode(row[1:2]) for b in batches for row in b["text_ids"]]
    return ["abcdefghijklmnopqrst".index(letter.strip()) for letter in letters]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_arrays_are_as_promised(tokenizer):
    (batch,) = take(make_batches(Records(), tokenizer, CONFIG), 1)
    kinds = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert kinds == {
        "images": ((4, 16, 16, 3), "float32"),
        "conditioning_image": ((4, 16, 16, 3), "float32"),
        "text_ids": ((4, 77), "int32"),
    }
    assert batch["images"].min() >= -1
    assert batch["images"].max() <= 1
    assert set(np.unique(batch["conditioning_image"])) == {0, 1}


def test_a_resumed_stream_continues_bit_by_bit(tokenizer):
    whole = take(make_batches(Records(), tokenizer, CONFIG), 8)
    resumed = make_batches(Records(), tokenizer, CONFIG, start_step=5)
    assert_same(whole[5:], take(resumed, 3))


@pytest.mark.parametrize("rows", [[0, 1], [2, 3], [1, 3], [2]])
def test_a_host_gets_its_rows_of_the_global_batches(tokenizer, rows):
    whole = take(make_batches(Records(), tokenizer, CONFIG), 4)
    part = take(make_batches(Records(), tokenizer, CONFIG, rows=rows), 4)
    chosen = [{name: batch[name][rows] for name in batch} for batch in whole]
    assert_same(part, chosen)


def test_a_last_validation_batch_weighs_the_rows_of_each_host(tokenizer):
    whole = list(validation_batches(Records(), tokenizer, CONFIG))
    for rows in ([0, 1], [3]):
        part = list(validation_batches(Records(), tokenizer, CONFIG, rows=rows))
        chosen = [{name: batch[name][rows] for name in batch} for batch in whole]
        assert_same(part, chosen)


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(1, marks=pytest.mark.release),
        pytest.param(2, marks=pytest.mark.ci),
    ],
)
def test_worker_processes_change_nothing(tokenizer, workers):
    # Phantoms, because a worker can only unpickle what it can import.
    config = dataclasses.replace(CONFIG, phantoms=PhantomsConfig(count=5))
    source = open_dataset(config, "train")
    threads = take(make_batches(source, tokenizer, config, start_step=1), 5)
    config = dataclasses.replace(config, workers=workers)
    processes = take(make_batches(source, tokenizer, config, start_step=1), 5)
    assert_same(threads, processes)


def test_an_epoch_holds_every_record_once_in_a_new_order(tokenizer):
    stream = take(make_batches(Records(), tokenizer, CONFIG), 10)
    seen = indices(stream, tokenizer)
    epochs = [tuple(seen[i : i + RECORDS]) for i in range(0, 40, RECORDS)]
    assert all(sorted(epoch) == list(range(RECORDS)) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_seeds_give_other_orders_and_other_edges(tokenizer):
    other = dataclasses.replace(CONFIG, seed=4)
    one, two = (take(make_batches(Records(), tokenizer, c), 3) for c in (CONFIG, other))
    assert indices(one, tokenizer) != indices(two, tokenizer)
    record = Records()[0]
    edges = [
        make_example(record, tokenizer, CONFIG, (seed, number))[0]["conditioning_image"]
        for seed, number in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({array.tobytes() for array in edges}) == 3


def test_fewer_records_than_a_batch_repeat(tokenizer):
    stream = take(make_batches(Records(3), tokenizer, CONFIG), 3)
    assert sorted(indices(stream, tokenizer)) == sorted([0, 1, 2] * 4)


def test_validation_weighs_every_record_once(tokenizer):
    batches = list(validation_batches(Records(), tokenizer, CONFIG))
    assert len(batches) == 3
    assert all(len(batch["images"]) == 4 for batch in batches)
    weights = np.concatenate([batch["example_weights"] for batch in batches])
    counted = np.zeros(RECORDS)
    np.add.at(counted, indices(batches, tokenizer), weights)
    np.testing.assert_array_equal(counted, np.ones(RECORDS))
    assert_same(batches, list(validation_batches(Records(), tokenizer, CONFIG)))


def test_letterbox_padding_has_no_edges_and_no_loss(tokenizer):
    config = dataclasses.replace(
        CONFIG, resize="letterbox", canny_low=(1.0, 1.0), canny_high=(9.0, 9.0)
    )
    source = Records(height=12, width=24)
    (batch,) = take(make_batches(source, tokenizer, config), 1)
    padding = batch["loss_mask"] == 0
    assert padding[0, :4].all()
    assert not padding[0, 4:12].any()
    assert not (batch["conditioning_image"] * padding).any()
    assert (batch["images"][np.repeat(padding, 3, axis=3)] == -1).all()
    # The frame between content and padding is no edge either: Canny came before it.
    assert (batch["conditioning_image"][0, 4:12] > 0).any()


def test_edges_are_those_of_the_resized_image(tokenizer):
    config = dataclasses.replace(CONFIG, canny_low=(90.0, 90.0), canny_high=(150, 150))
    record = Records()[0]
    example, _ = make_example(record, tokenizer, config, (0, 0))
    edges = canny(record["image"], 90, 150) / 255
    for channel in range(3):
        np.testing.assert_array_equal(
            example["conditioning_image"][..., channel], edges
        )


def test_a_stored_condition_wins_over_edges(tokenizer):
    stored = np.full((32, 32, 3), 51, np.uint8)
    record = Records()[0] | {"conditioning_image": stored}
    example, _ = make_example(record, tokenizer, CONFIG, (0, 0))
    np.testing.assert_allclose(example["conditioning_image"], 0.2, rtol=1e-6)
    with pytest.raises(UserError, match="record 0: .*Expected the same aspect ratio"):
        make_example(
            record | {"conditioning_image": stored[:16]}, tokenizer, CONFIG, (0, 0)
        )


@dataclasses.dataclass(frozen=True)
class Talkative(Records):
    """Records whose captions are too long."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"text": "a " * 75 + "lost words"}


def test_a_cut_caption_is_said_once_and_quoted(tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="medjax.data.pipeline"):
        take(make_batches(Talkative(), tokenizer, CONFIG), 3)
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage().replace(" ", "")
    assert "lostwords" in said


def test_phantoms_are_the_default():
    config = dataclasses.replace(CONFIG, phantoms=PhantomsConfig(count=16))
    assert dataset_metadata(config).splits == {"train": 16, "validation": 2, "test": 2}
    assert len(open_dataset(config, "validation")) == 2
    assert open_dataset(config, "train")[0]["image"].shape == (16, 16, 3)


def test_phantoms_with_fewer_findings_are_another_data_set():
    assert dataset_identity(CONFIG)["fingerprint"] == "phantoms"
    possible = [
        ("Nodule", "Effusion", "Cardiomegaly"),
        ("Cardiomegaly", "Effusion", "Nodule"),
        ("Effusion",),
        (),
    ]
    fewer = [
        dataclasses.replace(CONFIG, phantoms=PhantomsConfig(findings=names))
        for names in possible
    ]
    prints = [dataset_identity(config)["fingerprint"] for config in fewer]
    assert prints[0] == prints[1]
    assert len({"phantoms", *prints}) == 4
    well = open_dataset(fewer[-1], "train")
    assert {well[i]["labels"] for i in range(8)} == {()}


@pytest.mark.ci
def test_findings_can_be_more_frequent_which_is_another_data_set():
    usual, often = (
        dataclasses.replace(CONFIG, phantoms=PhantomsConfig(count=64, **share))
        for share in ({}, {"finding_share": 0.5})
    )
    both = [open_dataset(config, "train") for config in (usual, often)]
    few, many = ([set(source[i]["labels"]) for i in range(64)] for source in both)
    assert all(some <= more for some, more in zip(few, many, strict=True))
    for finding in FINDINGS:
        assert sum(finding in labels for labels in many) == pytest.approx(32, abs=12)
    assert dataset_identity(often)["fingerprint"] == "phantoms, a share of 0.5 each"


def test_the_kind_of_phantoms_decides_what_they_are():
    chest, knee, brain = (
        dataclasses.replace(CONFIG, phantoms=PhantomsConfig(8, kind))
        for kind in ("chest", "knee", "brain")
    )
    assert dataset_metadata(brain).label_names == ("AD", "NC")
    assert dataset_metadata(knee).label_names == ()
    assert "Effusion" in dataset_metadata(chest).label_names
    assert "knee" in open_dataset(knee, "validation")[0]["text"]
    assert open_dataset(brain, "train")[0]["labels"][0] in ("AD", "NC")
    kinds = (chest, knee, brain)
    assert len({dataset_metadata(config).description for config in kinds}) == 3
    assert len({dataset_identity(config)["fingerprint"] for config in kinds}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"canny_low": (3.0, 2.0)}, "canny_low"),
        ({"canny_low": (3.0, 300.0)}, "canny_low reaches 300, but canny_high reaches"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"workers": -1}, "workers is -1, expected at least 0"),
        ({"phantoms": None}, "root='' and phantoms=None: no data. Expected a prep"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        ControlDataConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "^count is 0, expected at least 1"),
        ({"findings": ("Efusion",)}, "^findings: .* mean 'Effusion'"),
        ({"finding_share": 1.5}, "^finding_share is 1.5, expected a fraction"),
    ],
)
def test_impossible_phantoms_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        PhantomsConfig(**change)


def test_a_config_of_other_data_has_no_phantoms():
    knees = PhantomsConfig(kind="knee")
    assert DataConfig(root="DATA", phantoms=knees).phantoms is None
    assert DataConfig().phantoms == PhantomsConfig()


def test_impossible_requests_are_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no example"):
        make_batches(Records(0), tokenizer, CONFIG)
    with pytest.raises(UserError, match="did you mean 'train'"):
        open_dataset(CONFIG, "trian")
    with pytest.raises(UserError, match="no such folder"):
        open_dataset(ControlDataConfig(root=str(tmp_path / "nothing")), "train")
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="not prepared; make a data set with"):
        open_dataset(ControlDataConfig(root=str(tmp_path)), "train")
