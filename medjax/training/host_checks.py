"""Check that all hosts of a run train the same thing in the same folder."""

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from medjax import distributed, trees
from medjax.arrays import Params
from medjax.runs.config import RunConfig
from medjax.runs.same_run import PER_HOST
from medjax.training.run_summary import CONFIG, write_summary

# A shared folder may show a new file after a delay.
_SECONDS_UNTIL_SEEN = 60.0
_SECONDS_BETWEEN_LOOKS = 0.5


def check_hosts(
    config: RunConfig,
    inputs: Mapping[str, Mapping[str, str]],
    params: Params,
    workdir: Path,
) -> None:
    """Check that all hosts have the same config, inputs, weights and workdir.

    The first host writes `config.json` if it is missing. An existing one stays, because
    a later check may still refuse the run.

    Args:
        config: Config of the run.
        inputs: ``source`` and ``fingerprint`` of the base model and the data, by name.
        params: The trained parameters, before the first step.
        workdir: Folder of the run.

    Raises:
        UserError: If the hosts differ, or the workdir is not writable.
    """
    file = workdir / CONFIG
    first = jax.process_index() == 0
    # The other hosts must not look yet, because NFS caches that a file is missing.
    if first and not file.exists():
        write_summary(config, workdir)
    if jax.process_count() == 1:
        return
    flat = trees.flatten(dataclasses.asdict(config))
    keys = {path.replace("/", "."): value for path, value in flat.items()}
    facts = {f"config.{key}": x for key, x in keys.items() if key not in PER_HOST}
    facts |= {name: about["fingerprint"] for name, about in inputs.items()}
    facts |= {"start": trees.fingerprint(params), "jax": jax.__version__}
    distributed.check_same("run", facts)
    there = digest_of(file, 0 if first else _SECONDS_UNTIL_SEEN)
    distributed.check_same("--workdir", {f"the SHA-256 of {file}": there})


def digest_of(file: Path, seconds: float) -> str | None:
    """Return a file's SHA-256 in hex; None if it does not appear within `seconds`."""
    end = time.monotonic() + seconds
    while not file.is_file():
        if time.monotonic() >= end:
            return None
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return hashlib.sha256(file.read_bytes()).hexdigest()
