"""Read the folder of a checkpoint without opening its run.

Reading does not lock, move or write anything. `write_metrics` is the only function here
that writes. `medjax.runs.checkpoints` describes the content of the folder.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from medjax import storage
from medjax.arrays import Params
from medjax.errors import UserError
from medjax.runs.checksums import add_checksum

# Path of the metrics in orbax's layout.
_METRICS = Path("metrics", "metrics")


def read_about(folder: Path) -> dict[str, Any]:
    """Return the ``config`` and ``inputs`` that the checkpoint was trained with."""
    return ocp.JsonCheckpointHandler().restore(
        folder / "about", args=ocp.args.JsonRestore()
    )


def read_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of the checkpoint's step, by name.

    They are empty if a signal stopped the run before they were measured.
    """
    file = folder / _METRICS
    return json.loads(file.read_text()) if file.exists() else {}


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Add metrics to a checkpoint that was saved without them."""
    with storage.replacing_folder(folder / _METRICS.parent) as beside:
        storage.write_json(beside / _METRICS.name, dict(metrics), indent=None)
    add_checksum(folder, folder / _METRICS)


def state_layout(folder: Path) -> dict[str, Params]:
    """Return the trees in the state by name, with array metadata as leaves.

    Raises:
        UserError: If the run deletes the checkpoint during reading.
    """
    with _while_read(folder):
        return ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree


def read_trees(folder: Path, layout: Mapping[str, Params]) -> dict[str, Params]:
    """Return trees of the state as NumPy arrays. The other trees stay on the disk.

    Args:
        folder: The checkpoint, undamaged (`medjax.runs.checksums`).
        layout: Those trees, from `state_layout`.

    Raises:
        UserError: If the run deletes the checkpoint during reading.
    """
    item = jax.tree.map(lambda leaf: np.empty((), leaf.dtype), dict(layout))
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(item, restore_args=kinds, partial_restore=True)
    with _while_read(folder):
        return ocp.PyTreeCheckpointHandler().restore(folder / "state", args=args)


@contextlib.contextmanager
def _while_read(folder: Path) -> Iterator[None]:
    """Explain the errors that occur if a checkpoint is deleted while it is read."""
    try:
        yield
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise
        raise UserError(
            f"checkpoint {folder} was deleted by its run while it was read. Run the "
            "same command again to read a newer one"
        ) from error
