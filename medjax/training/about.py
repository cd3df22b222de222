"""What a run says of itself: on the console, to its other hosts, in its workdir."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from medjax import distributed, storage, trees
from medjax.arrays import Params
from medjax.errors import UserError
from medjax.runs.config import RunConfig
from medjax.runs.same_run import PER_HOST

logger = logging.getLogger(__name__)

# A shared folder may show a new file late.
_SECONDS_UNTIL_SEEN = 60.0
_SECONDS_BETWEEN_LOOKS = 0.5


def check_hosts(
    config: RunConfig,
    inputs: Mapping[str, Mapping[str, str]],
    params: Params,
    workdir: Path,
) -> None:
    """Check that all hosts are about to train the same, in the same folder.

    A first `config.json` is written; one that is there stays, for the run may yet be
    refused.

    Raises:
        UserError: If they are not, or the workdir cannot be written to.
    """
    file = workdir / "config.json"
    first = jax.process_index() == 0
    # The others must not look yet: NFS remembers for a while that nothing was there.
    if first and not file.exists():
        write_about(config, workdir)
    if jax.process_count() == 1:
        return
    flat = trees.flatten(dataclasses.asdict(config))
    keys = {path.replace("/", "."): value for path, value in flat.items()}
    facts = {f"config.{key}": x for key, x in keys.items() if key not in PER_HOST}
    facts |= {name: about["fingerprint"] for name, about in inputs.items()}
    facts |= {"start": trees.fingerprint(params), "jax": jax.__version__}
    distributed.check_same("run", facts)
    there = digest_of(file, 0 if first else _SECONDS_UNTIL_SEEN)
    distributed.check_same("--workdir", {f"what lies in {file}": there})


def digest_of(file: Path, seconds: float) -> str | None:
    """Return the digest of what lies in `file`; None if it is not there in time."""
    end = time.monotonic() + seconds
    while not file.is_file():
        if time.monotonic() >= end:
            return None
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tell(
    config: RunConfig, params: Params, frozen: Params, mesh: Mesh, examples: int
) -> None:
    """Say on the console what is about to be trained."""
    logger.info(
        "%s on %d × %s (%s): %s parameters train, %s are frozen; %d training examples",
        config.task,
        mesh.size,
        mesh.devices.flat[0].device_kind,
        ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        f"{trees.count(params):,}",
        f"{trees.count(frozen):,}",
        examples,
    )


def write_about(config: RunConfig, workdir: Path, params: Params | None = None) -> None:
    """Write `config.json` and, of `params`, `parameters.txt`; the first host does.

    Raises:
        UserError: If the workdir cannot be written to.
    """
    if jax.process_index() != 0:
        return
    try:
        storage.write_json(workdir / "config.json", dataclasses.asdict(config))
        if params is not None:
            table = parameter_overview.get_parameter_overview(
                params, include_stats=False
            )
            storage.write_text(workdir / "parameters.txt", table + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir}: {error.strerror}; give a folder "
            "that you may write to"
        ) from error
