"""How images are drawn."""

import dataclasses

from medjax.diffusion.schedulers import find_sampler
from medjax.errors import UserError, check_fraction, check_least


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn.

    Attributes:
        sampler: One of `medjax.diffusion.schedulers.SAMPLERS`.
        steps: Of the sampler.
        guidance_scale: Weight of the caption, from 1, which is no guidance.
        guidance_rescale: How far to undo what guidance does to contrast, in [0, 1].
        eta: Fresh noise in DDIM's steps, in [0, 1].
        conditioning_scale: Weight of the ControlNet.
        control_start: Fraction of the steps before the ControlNet is heard, in [0, 1].
        control_end: Fraction of the steps after which it no longer is.
        strength: How much of the way from noise to image is gone, in (0, 1]; below 1
            it begins from the batch's images.
    """

    sampler: str = "ddim"
    steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    eta: float = 0.0
    conditioning_scale: float = 1.0
    control_start: float = 0.0
    control_end: float = 1.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values outside the ranges above.

        Raises:
            UserError: Starts with the name of the one that is.
        """
        find_sampler(self.sampler)
        check_least(self, steps=1, guidance_scale=1)
        for name in ("guidance_rescale", "eta", "control_start", "control_end"):
            check_fraction(self, name)
        if self.control_start >= self.control_end:
            raise UserError(
                f"control_start is {self.control_start}, expected less than "
                f"control_end, which is {self.control_end}"
            )
        if not 0 < self.strength <= 1 or int(self.steps * self.strength) < 1:
            raise UserError(
                f"strength is {self.strength}, expected more than 0 and at most 1, and "
                f"at least one of the {self.steps} steps"
            )
