"""Files of torch.save (.ckpt, .pth, .pt, .bin), read tensor by tensor without torch.

Since torch 1.6 such a file is a zip archive, uncompressed: a pickle (``data.pkl``) and
a file for each storage (``data/0``, ``data/1``, …). Before, it was five pickles one
after the other (a magic number, a version, the system, the content, the storages' keys)
and then each storage, its number of elements before it.

Either way the pickle says what lies where, and only tensors that are asked for are
read, by `safetensors_io.read_tensors`. Nothing in the pickle runs; see `pickles`.

Source: the formats, torch/serialization.py, ``_save`` and ``_legacy_save``.
"""

import io
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medjax.errors import UserError
from medjax.pretrained.pickles import PickledTensor, unpickle
from medjax.pretrained.safetensors_io import StoredTensor

ARCHIVE_START = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# A pickle in an archive is read whole; a larger one holds more than names and places.
MOST_PICKLE_BYTES = 100_000_000
# Where a trainer's checkpoint keeps the weights, among its own state.
STATE_DICT = "state_dict"

# First byte and number of bytes of each storage.
Places = dict[str, tuple[int, int]]


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return where every tensor of a state dict lies, by name.

    Args:
        file: Holds a state dict, or a trainer's checkpoint with one as ``state_dict``.

    Raises:
        UserError: If the file is missing, damaged, of another kind, asks for a call
            that is not made, or holds no weights.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing")
    with open(file, "rb") as opened:
        start = opened.read(len(ARCHIVE_START))
        opened.seek(0)
        read = _read_archive if start == ARCHIVE_START else _read_legacy
        content, places = read(opened, file)
    content = content if isinstance(content, dict) else {}
    state = content.get(STATE_DICT)
    tensors = {
        name: _located(name, value, places, file)
        for name, value in (state if isinstance(state, dict) else content).items()
        if isinstance(value, PickledTensor)
    }
    if not tensors:
        raise UserError(f"{file} holds no weights; expected a state dict by torch.save")
    return tensors


def _read_archive(opened: io.BufferedIOBase, file: Path) -> tuple[Any, Places]:
    try:
        with zipfile.ZipFile(opened) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            root = _root(entries)
            if (order := root + "byteorder") in entries:
                _check_byte_order(archive.read(order) == b"little", file)
            program = io.BytesIO(archive.read(root + "data.pkl"))
        inside = root + "data/"
        places = {
            name.removeprefix(inside): _place(opened, entry)
            for name, entry in entries.items()
            if name.startswith(inside)
        }
    except UserError:
        raise
    # A damaged directory makes the library fail in as many ways as it has fields.
    except Exception as error:
        raise UserError(
            f"{file} is damaged, or no archive by torch.save ({error}); an incomplete "
            "download?"
        ) from error
    return unpickle(program, file)[0], places


def _root(entries: Mapping[str, zipfile.ZipInfo]) -> str:
    """Return the folder that an archive has everything in."""
    end = "/data.pkl"
    root = next((name[: 1 - len(end)] for name in entries if name.endswith(end)), None)
    if root is None:
        raise ValueError("it has no data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("it is compressed")
    if entries[root + "data.pkl"].file_size > MOST_PICKLE_BYTES:
        raise ValueError("its data.pkl is too large")
    return root


def _place(opened: io.BufferedIOBase, entry: zipfile.ZipInfo) -> tuple[int, int]:
    opened.seek(entry.header_offset)
    # A name and an extra field lie between an entry's header and its bytes.
    name_size, extra_size = struct.unpack("<26xHH", opened.read(30))
    return opened.tell() + name_size + extra_size, entry.file_size


def _read_legacy(opened: io.BufferedIOBase, file: Path) -> tuple[Any, Places]:
    if unpickle(opened, file)[0] != LEGACY_MAGIC:
        raise UserError(f"{file} is no file of torch weights")
    unpickle(opened, file)
    system, _ = unpickle(opened, file)
    content, dtypes = unpickle(opened, file)
    keys, _ = unpickle(opened, file)
    little = isinstance(system, dict) and system.get("little_endian") is True
    _check_byte_order(little, file)
    try:
        places = {}
        for key in keys:
            (count,) = struct.unpack("<q", opened.read(8))
            places[key] = (opened.tell(), count * dtypes[key].itemsize)
            opened.seek(places[key][1], os.SEEK_CUR)
    except (KeyError, OSError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{file} is damaged or not all there") from error
    return content, places


def _check_byte_order(little: bool, file: Path) -> None:
    if not little:
        raise UserError(
            f"{file} was written on a machine that stores high bytes first; write it "
            "anew on another"
        )


def _located(
    name: str, tensor: PickledTensor, places: Places, file: Path
) -> StoredTensor:
    """Return where a tensor lies in the file, and see that it lies in its storage."""
    start, available = places.get(tensor.storage, (0, 0))
    available = min(available, file.stat().st_size - start)
    skipped = tensor.offset * tensor.dtype.itemsize
    in_order = all(
        count == 1 or stride == math.prod(tensor.shape[axis + 1 :])
        for axis, (count, stride) in enumerate(
            zip(tensor.shape, tensor.strides, strict=True)
        )
    )
    strides = None if in_order else tensor.strides
    located = StoredTensor(file, start + skipped, tensor.shape, tensor.dtype, strides)
    # Elements that repeat would let a small file claim any amount of memory.
    repeated = math.prod(tensor.shape) * tensor.dtype.itemsize > located.size
    if repeated or skipped + located.size > available:
        raise UserError(f"{file} is damaged or not all there, at {name!r:.200}")
    return located
