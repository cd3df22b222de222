"""One checkpoint's folder, read without its run: nothing is locked, moved or written.

`medjax.runs.checkpoints` says what lies in it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from medjax import storage
from medjax.arrays import Params
from medjax.errors import UserError
from medjax.runs.checksums import add_checksum

# Where orbax keeps them.
_METRICS = Path("metrics", "metrics")


def read_about(folder: Path) -> dict[str, Any]:
    """Return ``config`` and ``inputs`` that the checkpoint was trained with."""
    return ocp.JsonCheckpointHandler().restore(
        folder / "about", args=ocp.args.JsonRestore()
    )


def read_metrics(folder: Path) -> dict[str, float]:
    """Return what was measured at this step: nothing if a signal came before that."""
    file = folder / _METRICS
    return json.loads(file.read_text()) if file.exists() else {}


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Add what was measured to a checkpoint that was saved without it."""
    with storage.replacing_folder(folder / _METRICS.parent) as beside:
        storage.write_json(beside / _METRICS.name, dict(metrics), indent=None)
    add_checksum(folder, folder / _METRICS)


def state_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the trees in the state: ``params``, ``opt_state``, …."""
    return tuple(ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree)


def read_trees(folder: Path, *names: str) -> dict[str, Params]:
    """Return trees of the state as NumPy arrays, by name; the others stay on the disk.

    Args:
        folder: Of the checkpoint; whole, see `medjax.runs.checksums`.
        names: Some of `state_names`.

    Raises:
        UserError: If the run removes the checkpoint while it is read.
    """
    handler = ocp.PyTreeCheckpointHandler()
    try:
        stored = handler.metadata(folder / "state").tree
        wanted = {name: stored[name] for name in names}
        item = jax.tree.map(lambda leaf: np.empty((), leaf.dtype), wanted)
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item, restore_args=kinds, partial_restore=True)
        return handler.restore(folder / "state", args=args)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise
        raise UserError(
            f"checkpoint {folder} was removed by its run while it was read; give the "
            "same command again for a newer one"
        ) from error
