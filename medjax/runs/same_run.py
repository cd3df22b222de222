"""Whether a run may go on from a checkpoint: what must be the same, and what need not.

What decides the result has to stay: the base, the data, and every key of the config
except those that only say how long to train, on what, and what to write down.
"""

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from medjax import trees
from medjax.errors import UserError
from medjax.runs.config import completed

logger = logging.getLogger(__name__)

# Keys of where a host keeps what is known by its fingerprint, and how it reads it.
PER_HOST = (
    *("data.root", "data.workers"),
    *("model.autoencoder", "model.autoencoder_config"),
    *("model.controlnet", "model.pretrained", "model.vae"),
)
# Keys that may be others when a run goes on. The mesh and accumulation change rounding
# alone; what training began with is in the checkpoint.
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
    """Compare what a checkpoint was trained with and what this run has.

    Args:
        checkpoint: Which one, for the error.
        saved: ``config``, nested, and ``inputs``: ``source`` and ``fingerprint`` by
            name.
        own: The same of this run.
        may_differ: Patterns of the config's keys that may be others; a warning tells.

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
            logger.warning("going on from %s with another config: %s", checkpoint, line)
    if refused:
        raise UserError(
            f"{checkpoint} is of another run: {'; '.join(refused)}. Set it back, or "
            f"give another --workdir. What may differ: {', '.join(may_differ)}"
        )


def matters(key: str, may_differ: Sequence[str] = MAY_DIFFER) -> bool:
    """Tell whether a key of the config, as ``train.steps``, decides what is trained."""
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
