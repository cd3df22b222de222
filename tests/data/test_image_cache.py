"""Batches of cached images equal those of the data set, and each is made once."""

import csv
import dataclasses
import errno
import functools
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medjax import storage
from medjax.data import image_cache
from medjax.data.cached_records import ENDS, IMAGES, CachedImages, pack, unpack
from medjax.data.config import ClassDataConfig, ControlDataConfig, DataConfig
from medjax.data.image_cache import cache_images
from medjax.data.phantoms import PhantomsConfig
from medjax.data.pipeline import make_batches, open_dataset, record_ids
from medjax.errors import Stopped, UserError
from medjax.prepare import prepare
from tests.data.test_pipeline import assert_same, take
from tests.images import write_image

# Gray and in colour, wide and tall, larger and smaller than 16 pixels.
SHAPES = ((20, 30), (40, 24), (12, 10), (16, 16), (33, 33), (8, 40))
RANDOM = {"canny_low": (25.0, 100.0), "canny_high": (100.0, 200.0)}
PHANTOMS = PhantomsConfig(count=6, kind="brain")


def write_data(folder, controlled):
    """Prepare six images, each its own group; return the root of the data set."""
    lines = []
    for number, (height, width) in enumerate(SHAPES):
        file = write_image(folder / "raw" / f"{number}.png", height, width, number)
        if number % 2:
            Image.open(file).convert("L").save(file)
        line = {"file_name": file.name, "text": f"é {number}"}
        if controlled:
            name = f"control/{number}.png"
            write_image(folder / "raw" / name, 2 * height, 2 * width, 9 + number)
            line["conditioning_image"] = name
        lines.append(line)
    with open(folder / "raw" / "metadata.csv", "w", newline="") as file:
        table = csv.DictWriter(file, lines[0])
        table.writeheader()
        table.writerows(lines)
    shares = {"train": 0.8, "validation": 0.2, "test": 0.0}
    prepare("folder", folder / "raw", folder / "out", fractions=shares)
    return str(folder / "out")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Roots of the same images, without and with stored controls."""
    folder = tmp_path_factory.mktemp("data")
    return {
        name: write_data(folder / name, name == "stored") for name in ("", "stored")
    }


def made(kind=ControlDataConfig, **changes):
    return kind(
        **{"image_size": 16, "batch_size": 4, "workers": 0, "seed": 3} | changes
    )


CASES = {
    "plain": (made(DataConfig), ""),
    "fixed edges": (made(), ""),
    "skimage": (made(canny_backend="skimage", canny_sigma=1.0), ""),
    "random edges": (made(**RANDOM), ""),
    "letterbox": (made(resize="letterbox"), ""),
    "stretch": (made(resize="stretch", **RANDOM), ""),
    "stored controls": (made(resize="letterbox"), "stored"),
    "fold": (made(folds=2, fold=1), ""),
    "phantoms": (made(ClassDataConfig, classes=("AD", "NC"), phantoms=PHANTOMS), None),
}


@pytest.mark.parametrize("case", CASES)
def test_two_epochs_are_the_same_at_the_first_and_second_use(
    case, roots, tokenizer, tmp_path
):
    config, root = CASES[case]
    config = dataclasses.replace(
        config, cache=str(tmp_path), root="" if root is None else roots[root]
    )
    source = open_dataset(config, "train")
    steps = -(-2 * len(source) // config.batch_size)
    expected = take(make_batches(source, tokenizer, config), steps)
    for _ in range(2):
        cached = cache_images(open_dataset(config, "train"), config)
        assert len(cached) == len(source)
        assert_same(take(make_batches(cached, tokenizer, config), steps), expected)
        # A host's rows, after a resume.
        rows = {"start_step": 1, "rows": [1, 3]}
        part = take(make_batches(cached, tokenizer, config, **rows), 1)
        assert_same(part, [{name: expected[1][name][[1, 3]] for name in expected[1]}])
        assert record_ids(cached, config, 0) == record_ids(source, config, 0)


# It starts four processes.
@pytest.mark.ci
def test_worker_processes_fill_and_read_a_cache(tokenizer, tmp_path):
    config = made(DataConfig, phantoms=PhantomsConfig(count=5), cache=str(tmp_path))
    source = open_dataset(config, "train")
    expected = take(make_batches(source, tokenizer, config), 3)
    config = dataclasses.replace(config, workers=2)
    cached = cache_images(source, config)
    assert_same(take(make_batches(cached, tokenizer, config), 3), expected)


def test_without_a_folder_nothing_is_cached():
    source = open_dataset(made(), "train")
    assert cache_images(source, made()) is source


@dataclasses.dataclass
class Listening:
    """A source that records the indices that are read."""

    source: object
    read: list

    @property
    def split(self):
        return self.source.split

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.read.append(index)
        return self.source[index]


@pytest.fixture
def phantoms(tmp_path):
    """A config with a cache, and six phantoms that record what is read."""
    config = made(DataConfig, phantoms=PHANTOMS, cache=str(tmp_path / "cache"))
    return config, Listening(open_dataset(config, "train"), [])


def test_each_image_is_made_once(phantoms):
    config, source = phantoms
    assert cache_images(source, config).folder == cache_images(source, config).folder
    assert sorted(source.read) == list(range(6))


def test_a_cache_belongs_to_all_that_its_pixels_depend_on(roots, tmp_path):
    def folder(split="train", **changes):
        config = made(**{"root": roots[""], "cache": str(tmp_path)} | changes)
        return cache_images(open_dataset(config, split), config).folder.name

    first = folder()
    for same in ({"batch_size": 2}, {"seed": 9}, {"root": roots[""] + "/folder"}):
        assert folder(**same) == first
    edges = {"canny_low": (30.0, 30.0)}, {"canny_sigma": 1.0}, RANDOM
    others = (
        {"split": "validation"},
        {"image_size": 24},
        {"resize": "stretch"},
        {"canny_backend": "skimage"},
        {"root": roots["stored"]},
        *edges,
    )
    assert len({first, *(folder(**other) for other in others)}) == 1 + len(others)
    # Random thresholds come after the cache. A control without edges needs none.
    assert folder(**RANDOM) == folder(**RANDOM, canny_sigma=2.0)
    # All folds share the caches of the two splits that they divide.
    before = set(os.listdir(tmp_path))
    for fold in (0, 1):
        config = made(root=roots[""], cache=str(tmp_path), folds=2, fold=fold)
        cache_images(open_dataset(config, "train"), config)
    assert set(os.listdir(tmp_path)) == before


def test_gray_images_take_a_third_of_the_disk():
    colour = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    gray = np.repeat(colour[..., :1], 3, axis=2)
    edges = np.where(colour[..., 0] > 200, 255, 0).astype(np.uint8)
    record = {"id": "a", "text": "é", "labels": ("x", "y"), "parameters": {"age": 4}}
    for image, bytes_ in ((colour, 3 * 64**2), (gray, 64**2)):
        packed = pack(record, {"content": image, "edges": edges})
        assert bytes_ + 64**2 / 8 < len(packed) < bytes_ + 64**2 / 8 + 200
        found = unpack(packed)
        np.testing.assert_array_equal(found.pop("content"), image)
        np.testing.assert_array_equal(found.pop("edges"), edges)
        assert found == {"id": "a", "text": "é", "labels": ("x", "y")}


@pytest.mark.parametrize("torn", [0, 1, 300])
def test_an_interrupted_cache_is_completed(phantoms, torn):
    config, source = phantoms
    elsewhere = dataclasses.replace(config, cache=f"{config.cache}-whole")
    whole = cache_images(source, elsewhere)
    checks = iter([None, None, None, None, "SIGTERM"])
    with pytest.raises(Stopped, match="SIGTERM after caching 3 of 6 images.*resumes"):
        cache_images(source, config, lambda: next(checks))
    (begun,) = (file for file in storage.listed(Path(config.cache)) if file.is_dir())
    assert begun.suffix == ".incomplete"
    if torn:
        # As a crash may leave it: two images are complete.
        os.truncate(begun / IMAGES, (begun / IMAGES).stat().st_size - torn)
        (begun / ENDS).write_bytes((begun / ENDS).read_bytes() + b"abc")
    source.read.clear()
    cached = cache_images(source, config)
    assert sorted(source.read) == ([2, 3, 4, 5] if torn else [3, 4, 5])
    for file in (IMAGES, ENDS):
        assert (cached.folder / file).read_bytes() == (whole.folder / file).read_bytes()


def test_a_damaged_record_is_named_and_a_cut_file_is_made_again(phantoms, caplog):
    config, source = phantoms
    folder = cache_images(source, config).folder
    content = (folder / IMAGES).read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    (folder / IMAGES).write_bytes(content[:middle] + flipped + content[middle + 1 :])
    with pytest.raises(UserError, match=rf"{folder}: record \d is damaged; remove"):
        [CachedImages(folder)[number] for number in range(6)]
    (folder / IMAGES).write_bytes(content[:-1])
    cache_images(source, config)
    assert (folder / IMAGES).read_bytes() == content
    assert f"the images in {folder} are cut" in caplog.text


def test_two_runs_at_once_make_one_cache(phantoms, caplog):
    config, source = phantoms
    caplog.set_level(logging.INFO, logger="medjax")
    begun, proceed = threading.Event(), threading.Event()

    def pause():
        if len(source.read) >= 2:
            begun.set()
            assert proceed.wait(20)

    first = threading.Thread(target=cache_images, args=(source, config, pause))
    first.start()
    assert begun.wait(20)

    def look():
        # The second call asks before each attempt to get the lock.
        if "waiting for another process" in caplog.text:
            proceed.set()

    cached = cache_images(source, config, look)
    first.join()
    assert len(cached) == 6
    assert sorted(source.read) == list(range(6))


def test_a_stop_ends_the_wait_for_another_run(phantoms):
    config, source = phantoms
    folder = Path(config.cache) / image_cache._name(source, config)
    storage.make_folder(folder.parent)
    answers = iter([None, "SIGINT"])
    with storage.lock(folder), pytest.raises(Stopped, match="SIGINT after caching 0"):
        cache_images(source, config, lambda: next(answers))


def test_a_full_disk_is_told_before_the_first_image(phantoms, monkeypatch, caplog):
    config, source = phantoms
    caplog.set_level(logging.INFO, logger="medjax")
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 100)
    with pytest.raises(UserError, match=r"^config.data.cache=.*/cache: 6 images need"):
        cache_images(source, config)
    assert "caching 6 resized images in" in caplog.text
    monkeypatch.undo()
    assert len(cache_images(source, config)) == 6


def test_a_disk_that_fills_up_is_told(phantoms, monkeypatch):
    config, source = phantoms
    full = functools.partial(open, "/dev/full", "ab")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "appending", lambda path: full())
        told = rf"cache={config.cache}: cannot be written: {os.strerror(errno.ENOSPC)}"
        with pytest.raises(UserError, match=told):
            cache_images(source, config)
    assert len(cache_images(source, config)) == 6


def test_a_folder_that_cannot_be_made_is_told(phantoms):
    config, source = phantoms
    Path(config.cache).write_text("a file")
    with pytest.raises(UserError, match=r"config.data.cache=.*: cannot be written: "):
        cache_images(source, config)


@pytest.mark.parametrize("folder", ["", "gs://bucket/cache"])
def test_a_cache_is_on_a_local_disk(folder):
    with pytest.raises(UserError, match="Expected a folder on a local disk, or None"):
        made(cache=folder)
