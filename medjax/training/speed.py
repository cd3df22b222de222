"""A run's speed beside the peak of its devices: TFLOP/s and MFU.

    MFU = FLOPs of a step / (seconds of a step × the device's peak)               (1)

Source: Chowdhery et al., "PaLM", 2022, appendix B (but computed again activations
count here, because the compiled program does them).
"""

import dataclasses
import logging
from typing import Any

import jax

from medjax.chips import Chip, find_chip
from medjax.program_costs import program_flops

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StepWork:
    """The work of one step on one device.

    Attributes:
        flops: FLOPs of one step on one device; on a GPU, of the traced program.
        chip: The device's peak figures.
    """

    flops: float
    chip: Chip

    def speed(self, seconds_per_step: float) -> dict[str, float]:
        """Return ``tflops_per_device`` and ``mfu`` (eq. 1), in [0, 1]."""
        tflops = self.flops / seconds_per_step / 1e12
        return {"tflops_per_device": tflops, "mfu": tflops / self.chip.tflops}


def step_work(train_step: Any, *arguments: Any) -> StepWork | None:
    """Return the work of a step that has run; None on a device without a known peak.

    Args:
        train_step: The jitted step, after its first call.
        arguments: Those of its next call.
    """
    chip = find_chip(jax.local_devices()[0].device_kind)
    flops = chip and step_flops(train_step, *arguments)
    return StepWork(flops, chip) if chip and flops else None


def step_flops(train_step: Any, *arguments: Any) -> float | None:
    """Return the FLOPs of a jitted function that has run; None if they are unknown.

    Nothing is traced or compiled again: jax keeps both for arguments of the same
    shapes, types and shardings.

    Args:
        train_step: The jitted function, after its first call.
        arguments: Those of its next call.
    """
    try:
        traced = train_step.trace(*arguments)
        cost = traced.lower().compile().cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        counted = (cost or {}).get("flops", 0.0)
        flops = program_flops(traced, jax.local_devices()[0].platform, counted)
        return flops if flops > 0 else None
    except Exception as error:
        # A run is worth more than a number in its log.
        logger.info("the step's FLOPs are unknown: %s", str(error).split("\n")[0])
        return None
