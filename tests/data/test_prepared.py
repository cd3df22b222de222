import dataclasses
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from medjax.data.config import DataConfig
from medjax.data.datasets import builder
from medjax.data.datasets.survey import Entry, Survey
from medjax.data.pipeline import make_batches, open_dataset
from medjax.data.prepared import CONTENT, fingerprint, read_metadata
from medjax.data.roots import find_prepared
from medjax.errors import UserError
from tests.images import write_image

EVERYTHING_TRAINS = {"train": 1.0, "validation": 0.0, "test": 0.0}


def write(folder, name="set", count=3, seed=0, word="caption"):
    """Write a small data set, as `medjax.prepare` would."""
    entries = tuple(
        Entry(
            id=f"image {number}",
            image=write_image(folder / f"{number}.png", 20, 20, seed=seed + number),
            group=str(number),
            text=f"{word} é {number}",
            labels=("Mass", "Edema")[:number],
            attributes={"view": "PA", "age": 40 + number},
        )
        for number in range(count)
    )
    survey = Survey(
        name=name,
        entries=entries,
        skipped=(),
        counts={},
        group_name="patient_id",
        label_names=("Edema", "Mass"),
        licence="free",
    )
    builder.SurveyBuilder(
        survey, EVERYTHING_TRAINS, {"style": "x"}, folder / "out"
    ).write()
    return folder / "out"


@pytest.fixture
def root(tmp_path):
    return write(tmp_path)


def test_a_data_set_knows_itself(root):
    metadata = read_metadata(find_prepared(root)[0])
    assert metadata.name == "set/1.0.0"
    assert metadata.splits == {"train": 3}
    assert metadata.label_names == ("Edema", "Mass")
    assert metadata.licence == "free"
    assert metadata.settings == {"group_name": "patient_id", "style": "x"}
    assert "patient_id" in metadata.features


@pytest.mark.parametrize("below", ["", "set", "set/1.0.0"])
def test_records_are_whole(root, below):
    source = open_dataset(DataConfig(root=str(root / below)), "train")
    records = {source[i]["id"]: source[i] for i in range(len(source))}
    record = records["image 2"]
    assert record["image"].shape == (20, 20, 3)
    assert record["text"] == "caption é 2"
    assert record["labels"] == ("Mass", "Edema")
    assert records["image 0"]["labels"] == ()
    assert record["parameters"] == {"patient_id": "2", "view": "PA", "age": 42}


@pytest.mark.parametrize("digest_is_stored", [True, False])
def test_a_fingerprint_tells_images_and_captions(root, tmp_path, digest_is_stored):
    changes = ({}, {"seed": 9}, {"word": "CAPTION"})
    roots = [root]
    for number, change in enumerate(changes):
        roots.append(write(tmp_path / str(number), **change))
    for place in roots:
        (file,) = place.rglob("metadata.json")
        metadata = json.loads(file.read_text())
        assert len(metadata.pop(CONTENT)) == 64
        if not digest_is_stored:
            file.write_text(json.dumps(metadata))
    # As large as each other, for TFDS says how large its files are.
    for file in ("dataset_info.json", "features.json"):
        one, other = ((next(place.rglob(file)).read_bytes()) for place in roots[::3])
        assert one == other
    same, again, images, captions = (fingerprint(place) for place in roots)
    assert same == again
    assert len({same, images, captions}) == 3
    moved = root.rename(tmp_path / "moved")
    assert fingerprint(moved) == same


def test_a_missing_file_has_no_fingerprint(root):
    (file,) = root.rglob("metadata.json")
    file.write_text("{}")
    (shard,) = root.rglob("*train*")
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard}: No such file"):
        fingerprint(root)


def test_a_source_pickles_as_its_path(root):
    source = open_dataset(DataConfig(root=str(root)), "train")
    first = source[0]
    assert len(pickle.dumps(source)) < 500
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0]["image"], first["image"])


def test_missing_and_ambiguous_data_are_said(root, tmp_path):
    with pytest.raises(UserError, match=r"'trian', .*3 ex.*did you mean 'train'"):
        open_dataset(DataConfig(root=str(root)), "trian")
    write(tmp_path, name="other")
    with pytest.raises(UserError, match="several data sets"):
        open_dataset(DataConfig(root=str(root)), "train")
    assert open_dataset(DataConfig(root=str(root / "other")), "train").split == "train"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.ci)])
def test_a_damaged_image_is_named(tmp_path, tokenizer, monkeypatch, workers):
    with monkeypatch.context() as patch:
        # Slip a broken file past the builder, which would leave it out.
        pixels = np.zeros((20, 20, 3), np.uint8)
        patch.setattr(builder, "decode_image", lambda encoded, name: pixels)
        patch.setattr(Path, "read_bytes", lambda path: b"no image")
        root = write(tmp_path)
    config = DataConfig(root=str(root), image_size=16, batch_size=3, workers=workers)
    batches = make_batches(open_dataset(config, "train"), tokenizer, config)
    with pytest.raises(UserError, match=r"train, record image \d, image: not a read"):
        next(batches)


@pytest.mark.ci
def test_a_damaged_file_is_named(root, tokenizer):
    (shard,) = root.rglob("*train*")
    content = bytearray(shard.read_bytes())
    middle = content.index(b"IDAT")
    content[middle : middle + 300] = bytes(300)
    shard.write_bytes(content)
    source = open_dataset(DataConfig(root=str(root)), "train")
    named = rf"{shard}: record \d of train is damaged"
    with pytest.raises(UserError, match=named):
        [source[index] for index in range(3)]
    for workers in (0, 1):
        config = DataConfig(
            root=str(root), image_size=16, batch_size=3, workers=workers
        )
        with pytest.raises(UserError, match=named):
            next(make_batches(source, tokenizer, config))


def damage(content: bytes) -> dict[str, bytes | None]:
    half = len(content) // 2
    return {
        "missing": None,
        "empty": b"",
        "cut": content[:half],
        "cut by a byte": content[:-1],
        "longer": content + b"x" * 1000,
    }


@pytest.mark.parametrize("kind", damage(b""))
def test_a_file_that_is_not_whole_is_named_on_opening(root, kind):
    (shard,) = root.rglob("*train*")
    content = damage(shard.read_bytes())[kind]
    shard.unlink()
    if content is not None:
        shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"{shard}: is (missing|damaged)"):
        open_dataset(DataConfig(root=str(root)), "train")


def test_a_file_of_another_data_set_is_named(root, tmp_path):
    (other,) = write(tmp_path / "more", count=2).rglob("*train*")
    (shard,) = root.rglob("*train*")
    shard.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="has 2 records, expected 3"):
        open_dataset(DataConfig(root=str(root)), "train")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{}", "[", "\0"])
def test_damaged_metadata_are_named(root, name, content):
    (file,) = root.rglob(name)
    file.write_text(content)
    with pytest.raises(UserError, match=r"features\.json is damaged.*--overwrite"):
        open_dataset(DataConfig(root=str(root)), "train")


def test_what_is_not_prepared_is_told_apart(tmp_path):
    def message():
        with pytest.raises(UserError) as error:
            open_dataset(DataConfig(root=str(tmp_path / "root")), "train")
        return str(error.value)

    assert "no such folder" in message()
    (tmp_path / "root").touch()
    assert "is a file" in message()
    (tmp_path / "root").unlink()
    (tmp_path / "root").mkdir()
    assert "is empty" in message()
    (tmp_path / "root" / "notes.txt").touch()
    assert "only notes.txt" in message()
    write_image(tmp_path / "root" / "images" / "a.png")
    assert f"--source={tmp_path / 'root'} --out=PREPARED" in message()
    (tmp_path / "root" / ".incomplete").mkdir()
    assert "interrupted" in message()


@pytest.mark.ci
def test_workers_read_prepared_data_alike(root, tokenizer):
    config = DataConfig(root=str(root), image_size=16, batch_size=2, workers=0)
    source = open_dataset(config, "train")
    alone = list(itertools.islice(make_batches(source, tokenizer, config), 3))
    config = dataclasses.replace(config, workers=2)
    stream = make_batches(source, tokenizer, config)
    together = list(itertools.islice(stream, 3))
    stream.close()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])
