"""Describe a run: a line of its sizes, `config.json` and `parameters.txt`."""

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
    """Log what is about to train, on which devices.

    Args:
        config: The run's.
        params: What trains.
        frozen: What does not.
        mesh: Where arrays lie.
        examples: How many the training split has.
    """
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    logger.info(
        "%s on %d × %s (%s): %s parameters train, %s are frozen; %d training examples",
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
    """Write `config.json` and, of `params`, `parameters.txt`, on the first host.

    Args:
        config: The run's.
        workdir: Its folder, created if it is missing.
        params: What trains; None writes no `parameters.txt`.

    Raises:
        UserError: If the workdir cannot be written to.
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
            f"cannot write to --workdir={workdir}: {error.strerror}; give a folder "
            "that you may write to"
        ) from error
