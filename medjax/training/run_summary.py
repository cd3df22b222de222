"""Describe a run: a log line with its sizes, `config.json` and `parameters.txt`."""

import dataclasses
import logging
from pathlib import Path

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from medjax import storage, trees
from medjax.arrays import Params
from medjax.errors import UserError
from medjax.runs.config import RunConfig

logger = logging.getLogger(__name__)

CONFIG = "config.json"
_PARAMETERS = "parameters.txt"


def log_summary(
    config: RunConfig, params: Params, frozen: Params, mesh: Mesh, examples: int
) -> None:
    """Log the task, the devices, and the numbers of parameters and examples.

    Args:
        config: Config of the run.
        params: The trained parameters.
        frozen: The frozen parameters.
        mesh: Mesh on which the arrays are placed.
        examples: Number of training examples.
    """
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    logger.info(
        "%s on %d × %s (%s): %s trained and %s frozen parameters, %d training examples",
        config.task,
        mesh.size,
        mesh.devices.flat[0].device_kind,
        axes,
        f"{trees.count(params):,}",
        f"{trees.count(frozen):,}",
        examples,
    )


def write_summary(
    config: RunConfig, workdir: Path, params: Params | None = None
) -> None:
    """Write `config.json`, and `parameters.txt` for `params`. First host only.

    Args:
        config: Config of the run.
        workdir: Folder of the run, created if it is missing.
        params: The trained parameters. None writes no `parameters.txt`.

    Raises:
        UserError: If the workdir is not writable.
    """
    if jax.process_index() != 0:
        return
    try:
        storage.write_json(workdir / CONFIG, dataclasses.asdict(config))
        if params is not None:
            table = parameter_overview.get_parameter_overview(
                params, include_stats=False
            )
            storage.write_text(workdir / _PARAMETERS, table + "\n")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written to: {error.strerror}. Give a "
            "folder that you may write to"
        ) from error
