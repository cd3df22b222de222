"""Decide whether a run may resume from a checkpoint.

Whatever decides the result must be the same: the base, the data, and every key of the
config except those for duration, devices and reports.
"""

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from medjax import trees
from medjax.errors import UserError
from medjax.runs.config import completed

logger = logging.getLogger(__name__)

# Keys that say where a host keeps inputs, which fingerprints identify, and how it reads
# them.
PER_HOST = (
    *("data.root", "data.workers"),
    *("model.autoencoder", "model.autoencoder_config"),
    *("model.controlnet", "model.pretrained", "model.vae"),
)
# Keys that may differ when a run resumes. The mesh and accumulation change rounding
# alone; the weights that training started from are in the checkpoint.
MAY_DIFFER = (
    *PER_HOST,
    "best.*",
    "eval.*",
    "mesh.*",
    "model.remat",
    "model.route",
    "train.checkpoint_every",
    "train.gradient_accumulation_steps",
    "train.keep_*",
    "train.log_every",
    "train.max_*",
    "train.profile_*",
    "train.steps",
)


def check_same_run(
    checkpoint: str,
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
    may_differ: Sequence[str] = MAY_DIFFER,
) -> None:
    """Compare the inputs and the config of a checkpoint with those of this run.

    Args:
        checkpoint: Which one, for the error.
        saved: ``config``, nested, and ``inputs``: ``source`` and ``fingerprint`` by
            name.
        own: ``config`` and ``inputs`` of this run.
        may_differ: Patterns of the config's keys that may differ, with a warning.

    Raises:
        UserError: Names every difference that matters.
    """
    refused = []
    for name, now in own["inputs"].items():
        then = saved["inputs"][name]
        if not trees.is_same(then, now):
            refused.append(f"{name} is {_described(now)}, was {_described(then)}")
    for key, then, now in differences(completed(saved["config"]), own["config"]):
        line = f"config.{key} is {now!r}, was {then!r}"
        if matters(key, may_differ):
            refused.append(line)
        else:
            logger.warning("resuming from %s with another config: %s", checkpoint, line)
    if refused:
        raise UserError(
            f"{checkpoint} is of another run: {'; '.join(refused)}. Set it back, or "
            f"give another --workdir. What may differ: {', '.join(may_differ)}"
        )


def matters(key: str, may_differ: Sequence[str] = MAY_DIFFER) -> bool:
    """Tell whether a key of the config, as ``train.steps``, decides the result."""
    return not any(fnmatch.fnmatch(key, pattern) for pattern in may_differ)


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return (path, old, new) of every value that differs between two nested dicts."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted(old.keys() | new.keys())
            for difference in differences(
                old.get(key), new.get(key), f"{path}.{key}" if path else key
            )
        ]
    return [] if old == new else [(path, old, new)]


def _described(entry: Mapping[str, str]) -> str:
    return f"'{entry['source']}' ({entry['fingerprint']})"
