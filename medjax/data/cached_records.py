"""Store records as bytes, and read them from the two files of a cache.

``images.bin`` holds one record after the other, and ``ends.bin`` the place where each
ends, as int64.
"""

import dataclasses
import functools
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from medjax.data.transforms import repeat_gray
from medjax.errors import UserError

IMAGES, ENDS = "images.bin", "ends.bin"
"""Names of the files of a cache."""

# Checksum of all bytes that follow it, and length of the JSON text after it.
_HEAD = struct.Struct("<II")


@dataclasses.dataclass(frozen=True)
class CachedImages:
    """A split whose records have the arrays of `examples.resized`, no image.

    Attributes:
        folder: Folder of the cache.
    """

    folder: Path

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = int(self._ends[index - 1]) if index else 0
        record = unpack(self._images[start : int(self._ends[index])])
        if record is None:
            raise UserError(
                f"{self.folder}: record {index} is damaged; remove this folder, and "
                "the next run makes it again"
            )
        return record

    @functools.cached_property
    def _ends(self) -> Int64[np.ndarray, " n"]:
        return np.fromfile(self.folder / ENDS, np.int64)

    @functools.cached_property
    def _images(self) -> UInt8[np.ndarray, " n"]:
        return np.asarray(np.memmap(self.folder / IMAGES, np.uint8, "r"))

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes map the files themselves.
        return {"folder": self.folder}


def pack(
    record: dict[str, Any], made: dict[str, np.ndarray]
) -> UInt8[np.ndarray, " n"]:
    """Return the bytes of a record: checksum, texts and shapes in JSON, and pixels.

    One channel of gray images is stored. Edges are stored as bits.

    Args:
        record: Its ``id``, ``text`` and ``labels`` are stored.
        made: Arrays of `examples.resized`.
    """
    shapes, pixels = {}, []
    for name, array in made.items():
        if array.ndim == 3 and (array == array[:, :, :1]).all():
            array = array[:, :, :1]
        shapes[name] = array.shape
        pixels.append((np.packbits(array > 0) if array.ndim == 2 else array).tobytes())
    about = {name: record[name] for name in ("id", "text", "labels")}
    text = json.dumps(about | {"shapes": shapes}).encode()
    rest = _HEAD.pack(0, len(text))[4:] + b"".join((text, *pixels))
    return np.frombuffer(zlib.crc32(rest).to_bytes(4, "little") + rest, np.uint8)


def unpack(packed: UInt8[np.ndarray, " n"]) -> dict[str, Any] | None:
    """Return the record and arrays in these bytes; None if they are damaged."""
    data = packed.data
    if len(data) < _HEAD.size:
        return None
    checksum, length = _HEAD.unpack(data[: _HEAD.size])
    if zlib.crc32(data[4:]) != checksum:
        return None
    start = _HEAD.size + length
    record = json.loads(bytes(data[_HEAD.size : start]))
    record["labels"] = tuple(record["labels"])
    for name, shape in record.pop("shapes").items():
        values = math.prod(shape)
        end = start + (values if len(shape) == 3 else -(-values // 8))
        record[name] = _array(packed[start:end], shape)
        start = end
    return record


def _array(
    stored: UInt8[np.ndarray, " n"], shape: list[int]
) -> UInt8[np.ndarray, "..."]:
    """Return edges of 0 and 255 for two dimensions, or an image of three channels."""
    if len(shape) == 2:
        bits = np.unpackbits(stored, count=math.prod(shape)).reshape(shape)
        return bits * np.uint8(255)
    if shape[2] == 1:
        return repeat_gray(stored.reshape(shape[:2]))
    return stored.reshape(shape)
