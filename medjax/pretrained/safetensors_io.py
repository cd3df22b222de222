"""Read safetensors files tensor by tensor; write each file completely or not at all.

A file contains the length of its header (8 bytes, little-endian), the header (JSON:
dtype, shape and byte offsets of each tensor) and the bytes of the tensors. Each tensor
is read from its offset into a separate array. Mapping the file would take less code.
But mapped pages count as resident memory: 2.3 times the weights at the peak, not 1.1.

Arrays are NumPy arrays in main memory, on any device. Weights reach an accelerator only
when jax puts them there, and jax accepts the arrays without conversion.

Source: format from https://github.com/huggingface/safetensors#format.
"""

import contextlib
import dataclasses
import io
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from medjax import storage, texts
from medjax.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# Metadata that torch's readers look for: the library whose layout the tensors have.
METADATA = {"format": "pt"}
# Headers are read whole. If a header is larger, the file has another format.
MOST_HEADER_BYTES = 100_000_000
ALIGNMENT = 8


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Position, shape and dtype of a tensor in a file.

    Attributes:
        file: File that contains the tensor.
        start: Position of its first byte, from the start of the file.
        shape: Shape of the tensor.
        dtype: Dtype in the file.
        strides: Number of elements from one index to the next along each axis. None
            means row-major order, as in all safetensors files.
    """

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of bytes from its first to its last byte."""
        if self.strides is None or 0 in self.shape:
            return math.prod(self.shape) * self.dtype.itemsize
        steps = zip(self.shape, self.strides, strict=True)
        last = sum((count - 1) * stride for count, stride in steps)
        return (last + 1) * self.dtype.itemsize


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a safetensors file, or of its shards, by name.

    Args:
        file: The file, or the JSON index that lists the shard of each tensor.

    Raises:
        UserError: If a file is missing, damaged, or not a safetensors file.
    """
    if file.suffix != ".json":
        return _header(file)
    try:
        weight_map = json.loads(texts.read_text(file))["weight_map"]
        names = sorted({str(shard) for shard in weight_map.values()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged or not an index of shards: {error}. Copy it again"
        ) from error
    shards = {shard: _header(file.parent / shard) for shard in names}
    if lost := [
        name for name, shard in weight_map.items() if name not in shards[str(shard)]
    ]:
        raise UserError(
            f"{file} lists {', '.join(lost)}, but no shard contains this. Copy the "
            "shards again"
        )
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def read_tensors(
    tensors: Mapping[str, StoredTensor],
) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """Yield each tensor with its name, in the order of the files' bytes."""
    order = sorted(tensors, key=lambda name: (tensors[name].file, tensors[name].start))
    with contextlib.ExitStack() as stack:
        files: dict[Path, io.BufferedReader] = {}
        for name in order:
            tensor = tensors[name]
            if tensor.file not in files:
                files[tensor.file] = stack.enter_context(open(tensor.file, "rb"))
            file = files[tensor.file]
            file.seek(tensor.start)
            flat = np.empty(tensor.size, np.uint8)
            if file.readinto(flat.data) != tensor.size:
                raise UserError(f"{tensor.file} ends within {name}. Copy it again")
            yield name, _shaped(flat, tensor)


def write_tensors(
    file: Path,
    tensors: Mapping[str, Shaped[np.ndarray, "..."]],
    dtype: np.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file; replace an existing one only when all is written.

    Args:
        file: File to write; its folder is created if missing.
        tensors: Tensors by name. They are copied to row-major order and cast one at a
            time, while they are written.
        dtype: Dtype of all stored tensors. None means each tensor's own.
        metadata: Texts for the header, in addition to `METADATA`.

    Raises:
        UserError: If a value is too large for `dtype`.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    # Like other writers, put wide dtypes first, which keeps all tensors aligned.
    dtypes = {name: dtype or tensor.dtype for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": {**METADATA, **(metadata or {})}}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].size * dtypes[name].itemsize
        header[name] = {
            "dtype": codes[dtypes[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with storage.writing(file) as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for name in names:
            flat = np.ascontiguousarray(tensors[name]).reshape(-1)
            out.write(_cast(name, flat, dtypes[name]).view(np.uint8).data)


def _cast(
    name: str, flat: Shaped[np.ndarray, " n"], dtype: np.dtype
) -> Shaped[np.ndarray, " n"]:
    if flat.dtype == dtype:
        return flat
    with np.errstate(over="ignore"):
        cast = flat.astype(dtype)
    if not np.isfinite(cast).all() and np.isfinite(flat).all():
        raise UserError(
            f"{name} reaches {np.abs(flat).max():.3g}, which {dtype} cannot hold. Use "
            "bfloat16 or float32"
        )
    return cast


def _shaped(
    flat: Shaped[np.ndarray, " n"], tensor: StoredTensor
) -> Shaped[np.ndarray, "..."]:
    flat = flat.view(tensor.dtype)
    if tensor.strides is None or 0 in tensor.shape:
        return flat.reshape(tensor.shape)
    strides = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)


def _header(file: Path) -> dict[str, StoredTensor]:
    if not file.is_file():
        raise UserError(f"{file} is missing")
    with open(file, "rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 <= length <= min(MOST_HEADER_BYTES, file.stat().st_size - 8):
            raise UserError(f"{file} is damaged or not a safetensors file")
        try:
            header = dict(json.loads(opened.read(length)))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{file} is damaged or not a safetensors file: {error}"
            ) from error
    header.pop("__metadata__", None)
    return {name: _entry(file, name, entry, length) for name, entry in header.items()}


def _entry(file: Path, name: str, entry: Any, header_bytes: int) -> StoredTensor:
    """Return one tensor of a header, after checking that its entry is plausible."""
    try:
        code, shape = entry["dtype"], tuple(entry["shape"])
        first, last = entry["data_offsets"]
        known = code in DTYPES
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged at {name}. Expected dtype, shape and data_offsets, got "
            f"{entry!r:.200}"
        ) from error
    if not known:
        raise UserError(
            f"{file}: {name} has dtype {code}. Expected one of {', '.join(DTYPES)}"
        )
    start = 8 + header_bytes
    numbers = (first, last, *shape)
    if all(isinstance(number, int) and number >= 0 for number in numbers):
        tensor = StoredTensor(file, start + first, shape, DTYPES[code])
        if tensor.size == last - first and start + last <= file.stat().st_size:
            return tensor
    raise UserError(f"{file} is damaged or incomplete at {name}")
