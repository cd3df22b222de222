"""The numbers of steps that a run was planned for before `train.steps` was changed.

The learning rate depends on them: the warm-up is a fraction of the steps that the run
began with, and a decay continues from its present rate. So checkpoints keep them.
"""

from collections.abc import Mapping
from typing import Any

EARLIER_PLANS = "earlier_plans"
"""Where a checkpoint keeps them, beside its config."""


def earlier_plans(
    saved: Mapping[str, Any], done: int, own: Mapping[str, Any]
) -> tuple[tuple[int, int], ...]:
    """Return each earlier plan: its steps, and the updates done when another came.

    Args:
        saved: What a checkpoint was trained with; see `medjax.runs.checkpoints`. Empty
            where there is none.
        done: Updates that it has done.
        own: What the run that resumes it is trained with.
    """
    if not saved:
        return ()
    kept = tuple((steps, at) for steps, at in saved.get(EARLIER_PLANS, ()))
    then, now = (
        about["config"].get("train", {}).get("steps") for about in (saved, own)
    )
    return kept if then == now else (*kept, (then, done))
