"""Compute the latents of each training image once, and keep them on disk.

A frozen autoencoder gives the same mean and log-variance of an image's latents in every
epoch. For Stable Diffusion at 512², its encoder is a third of a step's arithmetic.
So mean and log-variance are computed before training and stored as float16. Each step
still samples new latents from them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from medjax import meshes, storage
from medjax.arrays import Array, Params
from medjax.data.config import DataConfig
from medjax.data.pipeline import Source, make_batches
from medjax.errors import Stopped, UserError
from medjax.logs import ProgressBar
from medjax.runs.checksums import damage, write_checksums
from medjax.training.stop import StopRequest

logger = logging.getLogger(__name__)

_RECORDS = "records.jsonl"
_ARRAYS = ("latents_mean", "latents_logvar")
_STORED = np.dtype(np.float16)

Posterior = Callable[[Params, Array], tuple[Array, Array]]
"""Maps frozen weights and images in [-1, 1] to mean and log-variance of latents."""


@dataclasses.dataclass(frozen=True)
class CachedLatents:
    """A split whose records have ``latents_mean`` and ``latents_logvar``, no image.

    Attributes:
        folder: Folder of the stored latents.
    """

    folder: Path

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        arrays = {name: np.asarray(x[index]) for name, x in self._arrays.items()}
        return self._records[index] | arrays

    @functools.cached_property
    def _records(self) -> list[dict[str, Any]]:
        lines = (self.folder / _RECORDS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        files = {name: self.folder / f"{name}.npy" for name in _ARRAYS}
        return {name: np.load(file, mmap_mode="r") for name, file in files.items()}

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes map the files themselves.
        return {"folder": self.folder}


def cache_latents(
    source: Source,
    data: DataConfig,
    inputs: Mapping[str, Mapping[str, str]],
    posterior: Posterior,
    frozen: Params,
    mesh: Mesh,
    home: Path,
    stop: StopRequest,
) -> CachedLatents:
    """Return a split's latents; compute and store them if they are missing.

    Args:
        source: The split.
        data: How its images are made, and the batch size.
        inputs: Fingerprints of data and weights, which determine the latents.
        posterior: The encoder.
        frozen: Weights of the encoder, on `mesh`.
        mesh: Devices to compute on.
        home: Folder of all stored latents; these get a folder inside it.
        stop: A request ends the work between two batches. The next call resumes there.

    Raises:
        UserError: If there are several hosts. Also if images are padded, because the
            mask of the padding is not stored.
        Stopped: If `stop` was requested.
    """
    if jax.process_count() > 1:
        raise UserError(
            "config.model.cache_latents=True: several hosts are not supported. Set it "
            "to False"
        )
    if data.resize == "letterbox":
        raise UserError(
            "config.data.resize=letterbox: config.model.cache_latents cannot store the "
            "mask of the padding. Set another config.data.resize, or "
            "config.model.cache_latents=False"
        )
    dtype = jax.tree.leaves(frozen)[0].dtype
    name = _name(source, data, inputs, dtype)
    _rename_former(home, name, _name(source, data, _former(inputs), dtype))
    folder = home / name
    if folder.is_dir() and (reason := damage(folder)):
        logger.warning("computing the latents in %s again: %s", folder, reason)
        storage.remove(folder)
    if not folder.is_dir():
        begun = home / f"{name}.incomplete"
        storage.make_folder(begun)
        logger.info("caching the latents of %d images", len(source))
        _write(source, data, posterior, frozen, mesh, begun, stop)
        write_checksums(begun)
        storage.rename(begun, folder)
        logger.info("cached the latents of %d images in %s", len(source), folder)
    return CachedLatents(folder)


def _name(
    source: Source,
    data: DataConfig,
    inputs: Mapping[str, Mapping[str, str]],
    dtype: np.dtype,
) -> str:
    """Return a name that no other latents have."""
    facts = {name: one["fingerprint"] for name, one in inputs.items()}
    facts |= {"dtype": str(dtype), "stored": f"{_STORED}, {_RECORDS}"}
    facts |= {"size": str(data.image_size), "resize": data.resize}
    # The examples, because each fold trains on others.
    facts |= {"examples": str(len(source)), "fold": f"{data.fold} of {data.folds}"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _former(inputs: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return the inputs with their former fingerprints, where they have one."""
    return {
        name: {"fingerprint": one.get("sparse_fingerprint", one["fingerprint"])}
        for name, one in inputs.items()
    }


def _rename_former(home: Path, name: str, former: str) -> None:
    """Rename latents that are named by the former fingerprints."""
    for ending in ("", ".incomplete"):
        folder = home / f"{former}{ending}"
        if (
            former != name
            and folder.is_dir()
            and not (home / f"{name}{ending}").exists()
        ):
            storage.rename(folder, home / f"{name}{ending}")


def _write(
    source: Source,
    data: DataConfig,
    posterior: Posterior,
    frozen: Params,
    mesh: Mesh,
    folder: Path,
    stop: StopRequest,
) -> None:
    side = data.image_size
    one = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    row = jax.eval_shape(posterior, frozen, one)[0].shape[1:]
    header = _header((len(source), *row))
    count = _whole_rows(folder, len(header), math.prod(row) * _STORED.itemsize)
    if count:
        logger.info("%d of %d latents are cached already", count, len(source))
    encode = jax.jit(meshes.on_mesh(mesh, posterior))
    # Read in threads, because other processes could not add to `records`.
    recording = _RecordingSource(source, count, {})
    here = dataclasses.replace(data, workers=0)
    batches = make_batches(recording, None, here, shuffle=False, repeat=False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(batches))
        *files, lines = (
            stack.enter_context(storage.appending(folder / name))
            for name in (*(f"{name}.npy" for name in _ARRAYS), _RECORDS)
        )
        bar = stack.enter_context(
            ProgressBar("caching latents", len(source), "images", count)
        )
        # Nothing is left to do if only the final rename was missing.
        for batch in batches if count < len(source) else ():
            if stop.signal is not None:
                raise Stopped(
                    f"{stop.signal.name} after caching the latents of {count} of "
                    f"{len(source)} images, before the first step; the same command "
                    "resumes the run"
                )
            images = meshes.place_batch({"images": batch["images"]}, mesh)["images"]
            # The last batch is filled up with images from the beginning.
            found = min(len(images), len(source) - count)
            for file, array in zip(files, encode(frozen, images), strict=True):
                if count == 0:
                    file.write(header)
                # Written and not memory-mapped, so that a full disk raises an error
                # instead of ending the process.
                file.write(np.asarray(array)[:found].astype(_STORED).tobytes())
            for index in range(count, count + found):
                line = json.dumps(recording.records.pop(index)) + "\n"
                lines.write(line.encode())
            count += found
            bar.update(found)


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the beginning of a `.npy` file."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(_STORED)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _whole_rows(folder: Path, header: int, row: int) -> int:
    """Return how many images are in all files of an interrupted call; cut the rest.

    Args:
        folder: Folder of these files; empty if no call was interrupted.
        header: Bytes before the first row of an array's file.
        row: Bytes of each row.
    """
    files = [folder / f"{name}.npy" for name in _ARRAYS]
    records = folder / _RECORDS
    if not all(file.is_file() for file in (*files, records)):
        # The first batch was not written.
        storage.remove(folder)
        storage.make_folder(folder)
        return 0
    lines = records.read_bytes().splitlines(keepends=True)
    told = sum(line.endswith(b"\n") for line in lines)
    rows = [max(0, file.stat().st_size - header) // row for file in files]
    count = min(told, *rows)
    storage.write_bytes(records, b"".join(lines[:count]))
    for file in files:
        storage.truncate(file, header + count * row if count else 0)
    return count


@dataclasses.dataclass(frozen=True)
class _RecordingSource:
    """A source that records the id and text of each example that is read.

    Attributes:
        source: The source to read.
        first: Index in `source` of this source's first example.
        records: Id and text, by index in `source`.
    """

    source: Source
    first: int
    records: dict[int, dict[str, Any]]

    def __len__(self) -> int:
        return len(self.source) - self.first

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[self.first + index]
        self.records[self.first + index] = {"id": record["id"], "text": record["text"]}
        return record
