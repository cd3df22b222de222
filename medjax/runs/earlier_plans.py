"""Earlier values of `train.steps`, if it was changed when a run resumed.

The learning rate depends on them: the warm-up is a fraction of the first value, and a
decay continues from the current rate. Checkpoints therefore store them.
"""

from collections.abc import Mapping
from typing import Any

EARLIER_PLANS = "earlier_plans"
"""Key of the earlier plans in a checkpoint, beside its config."""


def earlier_plans(
    saved: Mapping[str, Any], done: int, own: Mapping[str, Any]
) -> tuple[tuple[int, int], ...]:
    """Return each earlier plan as (its `train.steps`, step at which it was replaced).

    Args:
        saved: Content of ``about`` in the newest checkpoint, see
            `medjax.runs.checkpoints`. Empty if no checkpoint exists.
        done: Steps that the checkpoint has done.
        own: The same content for the run that resumes.
    """
    if not saved:
        return ()
    kept = tuple((steps, at) for steps, at in saved.get(EARLIER_PLANS, ()))
    then, now = (
        about["config"].get("train", {}).get("steps") for about in (saved, own)
    )
    return kept if then == now else (*kept, (then, done))
