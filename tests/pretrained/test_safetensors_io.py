"""Safetensors, beside the library that defines them."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from medjax.errors import UserError
from medjax.pretrained.safetensors_io import (
    read_tensors,
    stored_tensors,
    write_tensors,
)

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.standard_normal((3, 2, 5)).astype(np.float32),
    "b": RNG.standard_normal((4, 4)).astype(np.float16),
    "c": RNG.standard_normal(7).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3.0, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "ids": np.arange(77),
}


def read_all(file):
    return dict(read_tensors(stored_tensors(file)))


def assert_equal(read, expected):
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_reads_what_the_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert_equal(read_all(tmp_path / "x.safetensors"), TENSORS)


def test_the_library_reads_what_we_write(tmp_path):
    file = tmp_path / "x.safetensors"
    strided = {"t": TENSORS["a.weight"].transpose(2, 0, 1)}
    write_tensors(file, TENSORS | strided)
    assert_equal(load_file(file), TENSORS | strided)
    with safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_shards_are_found_by_their_index(tmp_path):
    names = list(TENSORS)
    shards = {"x-1.safetensors": names[:2], "x-2.safetensors": names[2:]}
    for file, held in shards.items():
        save_file({name: TENSORS[name] for name in held}, tmp_path / file)
    index = tmp_path / "x.safetensors.index.json"
    weight_map = {name: file for file, held in shards.items() for name in held}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(read_all(index), TENSORS)

    weight_map["lost"] = "x-1.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match="lost"):
        stored_tensors(index)
    (tmp_path / "x-2.safetensors").unlink()
    with pytest.raises(UserError, match="x-2.safetensors is missing"):
        stored_tensors(index)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_file_that_was_cut_is_an_error(tmp_path, keep):
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="x.safetensors"):
        stored_tensors(file)


def test_another_kind_of_file_is_an_error(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 10)
    with pytest.raises(UserError, match="not a safetensors file"):
        stored_tensors(file)
    for header in (b"{not JSON", b"[1]", b"17"):
        file.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(UserError, match="not a safetensors file"):
            stored_tensors(file)


GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "entry",
    [
        1,
        [],
        {},
        "F32",
        {"dtype": "F32", "shape": [2, 2]},
        GOOD | {"dtype": ["F32"]},
        GOOD | {"dtype": "F33"},
        GOOD | {"shape": 4},
        GOOD | {"shape": [2, "2"]},
        GOOD | {"shape": [-2, -2]},
        GOOD | {"shape": [-2, -2], "data_offsets": [-16, 0]},
        GOOD | {"shape": [2.0, 2]},
        GOOD | {"data_offsets": [0]},
        GOOD | {"data_offsets": [0, 16, 16]},
        GOOD | {"data_offsets": [-16, 0]},
        GOOD | {"data_offsets": [16, 32]},
        GOOD | {"data_offsets": [None, 16]},
    ],
)
def test_what_a_header_cannot_say_is_an_error(tmp_path, entry):
    file = tmp_path / "x.safetensors"

    def write(entry):
        header = json.dumps({"a": entry}).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))

    write(GOOD)
    assert read_all(file)["a"].shape == (2, 2)
    write(entry)
    with pytest.raises(UserError, match=r"x\.safetensors.* a\b"):
        stored_tensors(file)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"weight_map": [1]}'])
def test_a_damaged_index_is_an_error(tmp_path, text):
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        stored_tensors(index)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(file, TENSORS)

    class Failing(dict):
        def __getitem__(self, name):
            if name == "ids" and failing:
                raise OSError("disk full")
            return super().__getitem__(name)

    failing = False
    tensors = Failing(TENSORS)
    failing = True
    with pytest.raises(OSError, match="disk full"):
        write_tensors(file, tensors)
    assert_equal(read_all(file), TENSORS)
    assert [found.name for found in tmp_path.iterdir()] == ["x.safetensors"]
