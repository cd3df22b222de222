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
import json
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from medjax import distributed, meshes, storage
from medjax.arrays import Array, Params
from medjax.data.config import ControlDataConfig, DataConfig
from medjax.data.pipeline import Source, make_batches
from medjax.training.stop import StopRequest
from medjax.training.stored_rows import (
    RECORDS,
    STORED,
    Rows,
    StoredRows,
    compute_rows,
)

_ARRAYS = ("latents_mean", "latents_logvar")

Posterior = Callable[[Params, Array], tuple[Array, Array]]
"""Maps frozen weights and images in [-1, 1] to mean and log-variance of latents."""


@dataclasses.dataclass(frozen=True)
class CachedLatents:
    """A split whose records have ``latents_mean`` and ``latents_logvar``.

    Attributes:
        rows: The stored latents.
        images: The split itself, if records must have their images too, because
            conditioning images are made from them. None means records without images.
    """

    rows: StoredRows
    images: Source | None = None

    def __len__(self) -> int:
        return len(self.rows.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.rows.records[index] if self.images is None else self.images[index]
        return record | self.rows.arrays(index)


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
        data: How its images are made, and the batch size. They are not padded, because
            the mask of the padding is not stored.
        inputs: Fingerprints of data and weights, which determine the latents.
        posterior: The encoder.
        frozen: Weights of the encoder, on `mesh`.
        mesh: Devices to compute on.
        home: Folder of all stored latents; these get a folder inside it. All hosts
            share it.
        stop: A request ends the work between two batches. The next call resumes there.

    Raises:
        Stopped: If `stop` was requested.
    """
    dtype = jax.tree.leaves(frozen)[0].dtype
    name = _name(source, data, inputs, dtype)
    if jax.process_index() == 0:
        _rename_former(home, name, _name(source, data, _former(inputs), dtype))
    side = data.image_size
    one = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    row = jax.eval_shape(posterior, frozen, one)[0].shape[1:]

    rows = compute_rows(
        home / name,
        dict.fromkeys(_ARRAYS, row),
        len(source),
        "latents",
        functools.partial(_encoded, source, data, posterior, frozen, mesh),
        stop,
    )
    return CachedLatents(rows, source if isinstance(data, ControlDataConfig) else None)


def _name(
    source: Source,
    data: DataConfig,
    inputs: Mapping[str, Mapping[str, str]],
    dtype: np.dtype,
) -> str:
    """Return a name that no other latents have."""
    facts = {name: one["fingerprint"] for name, one in inputs.items()}
    facts |= {"dtype": str(dtype), "stored": f"{STORED}, {RECORDS}"}
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


def _encoded(
    source: Source,
    data: DataConfig,
    posterior: Posterior,
    frozen: Params,
    mesh: Mesh,
    start: int,
) -> Generator[Rows]:
    """Yield the latents of batches of images, with their ids and texts."""
    encode = jax.jit(
        meshes.on_mesh(mesh, posterior), out_shardings=meshes.replicated(mesh)
    )
    # Read in threads, because other processes could not add to `records`.
    recording = _RecordingSource(source, start, {})
    plain = DataConfig(
        image_size=data.image_size,
        resize=data.resize,
        batch_size=data.batch_size,
        workers=0,
    )
    rows = meshes.host_rows(data.batch_size, mesh)
    batches = make_batches(
        recording, None, plain, rows=rows, shuffle=False, repeat=False
    )
    with contextlib.closing(batches):
        for batch in batches:
            images = meshes.place_batch({"images": batch["images"]}, mesh)["images"]
            arrays = [np.asarray(array) for array in encode(frozen, images)]
            end = min(start + data.batch_size, len(source))
            # Each host reads its own rows; threads may already be reading later ones.
            mine = [recording.records.pop(i, None) for i in range(start, end)]
            each = zip(*distributed.gather(mine), strict=True)
            yield arrays, [next(one for one in found if one) for found in each]
            start = end


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
