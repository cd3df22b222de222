"""Decide whether a run may resume from a checkpoint.

Everything that decides the result must be the same: the base model, the data, and all
config keys except those for duration, devices and reports.
"""

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from medjax import trees
from medjax.errors import UserError
from medjax.runs.config import completed

logger = logging.getLogger(__name__)

# Where a host stores the inputs, and how it reads them. Fingerprints identify the
# inputs themselves.
PER_HOST = (
    *("data.cache", "data.root", "data.workers"),
    *("model.autoencoder", "model.autoencoder_config"),
    *("model.controlnet", "model.pretrained", "model.vae"),
)
# Keys that may differ when a run resumes. The mesh and accumulation change only the
# rounding. The checkpoint replaces the weights that training started from.
MAY_DIFFER = (
    *PER_HOST,
    "best.*",
    "eval.*",
    "log.*",
    "mesh.*",
    "model.attention",
    "model.cache_latents",
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
        checkpoint: Description of the checkpoint, for the error message.
        saved: ``config``, a nested dict, and ``inputs``, ``source`` and ``fingerprint``
            by name, of the checkpoint.
        own: ``config`` and ``inputs`` of this run.
        may_differ: Patterns of config keys that may differ. A difference is logged as a
            warning.

    Raises:
        UserError: If anything else differs. The message lists all these differences.
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
            logger.warning("resuming %s with a changed config: %s", checkpoint, line)
    if refused:
        raise UserError(
            f"{checkpoint} belongs to another run: {'; '.join(refused)}. Restore the "
            "old values, or use another --workdir. Keys that may differ: "
            f"{', '.join(may_differ)}"
        )


def matters(key: str, may_differ: Sequence[str] = MAY_DIFFER) -> bool:
    """Return whether a run may not resume if this key, e.g. ``data.root``, changed."""
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
