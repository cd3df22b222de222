"""Read files of torch.save (.ckpt, .pth, .pt, .bin) tensor by tensor, without torch.

Since torch 1.6, such a file is an uncompressed zip archive. It contains a pickle
(``data.pkl``) and one file per storage (``data/0``, ``data/1``, …). Older files contain
five pickles in sequence: a magic number, a version, the system, the content, and the
keys of the storages. Then follow the storages, each after its number of elements.

In both formats, the pickle gives the position of each tensor.
`safetensors_io.read_tensors` reads only the requested ones. No code of the pickle runs;
see `pickles`.

Source: formats from torch/serialization.py, ``_save`` and ``_legacy_save``.
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
# Pickles in archives are read whole. Larger ones contain more than names and positions.
MOST_PICKLE_BYTES = 100_000_000
# Key of the weights in a trainer's checkpoint, which also contains its own state.
STATE_DICT = "state_dict"

# First byte and number of bytes of each storage.
Places = dict[str, tuple[int, int]]


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return the position of every tensor of a state dict, by name.

    Args:
        file: File with a state dict, or with a trainer's checkpoint that contains one
            as ``state_dict``.

    Raises:
        UserError: If the file is missing, damaged or of another kind, if it requests a
            call that is refused, or if it contains no weights.
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
        raise UserError(
            f"{file} contains no weights. Expected a state dict written by torch.save"
        )
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
    # If the archive's directory is damaged, the library can raise any error.
    except Exception as error:
        raise UserError(
            f"{file} is damaged or not an archive of torch.save ({error}). It may be "
            "an incomplete download"
        ) from error
    return unpickle(program, file)[0], places


def _root(entries: Mapping[str, zipfile.ZipInfo]) -> str:
    """Return the folder that contains all files of an archive."""
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
    # A name and an extra field are between an entry's header and its bytes.
    name_size, extra_size = struct.unpack("<26xHH", opened.read(30))
    return opened.tell() + name_size + extra_size, entry.file_size


def _read_legacy(opened: io.BufferedIOBase, file: Path) -> tuple[Any, Places]:
    if unpickle(opened, file)[0] != LEGACY_MAGIC:
        raise UserError(f"{file} is not a file of torch weights")
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
        raise UserError(f"{file} is damaged or incomplete. Copy it again") from error
    return content, places


def _check_byte_order(little: bool, file: Path) -> None:
    if not little:
        raise UserError(
            f"{file} was written on a big-endian machine. Expected a file from a "
            "little-endian machine. Save it again there"
        )


def _located(
    name: str, tensor: PickledTensor, places: Places, file: Path
) -> StoredTensor:
    """Return a tensor's position in the file; check that it is inside its storage."""
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
    # Repeated elements would let a small file claim any amount of memory.
    repeated = math.prod(tensor.shape) * tensor.dtype.itemsize > located.size
    if repeated or skipped + located.size > available:
        raise UserError(
            f"{file} is damaged or incomplete at {name!r:.200}. Copy it again"
        )
    return located
