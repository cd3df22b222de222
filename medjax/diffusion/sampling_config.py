"""Define the settings of sampling."""

import dataclasses

from medjax.diffusion.schedulers import find_sampler
from medjax.errors import UserError, check_fraction, check_least


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling.

    Attributes:
        sampler: Name of the sampler, such as ``ddim`` or ``dpmpp_2m``; see the
            reference of samplers.
        steps: Number of sampler steps, at least 1.
        guidance_scale: Weight of the caption, at least 1. 1 means no guidance.
        guidance_rescale: How far to undo the effect of guidance on contrast, in [0, 1].
        eta: Amount of fresh noise in the steps of DDIM, in [0, 1].
        conditioning_scale: Factor of the ControlNet's outputs, at least 0. The network
            was trained with 1.
        control_start: Fraction of the steps before the ControlNet acts, in [0, 1].
        control_end: Fraction of the steps after which it stops, in [0, 1], above
            `control_start`.
        strength: Fraction of the steps to take, in (0, 1]. 1 starts from noise. Below
            1, sampling starts from given images with noise added.
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
            UserError: If a value is outside. The message starts with its name.
        """
        find_sampler(self.sampler)
        check_least(self, steps=1, guidance_scale=1, conditioning_scale=0)
        for name in ("guidance_rescale", "eta", "control_start", "control_end"):
            check_fraction(self, name)
        if self.control_start >= self.control_end:
            raise UserError(
                f"control_start={self.control_start}: expected less than "
                f"control_end={self.control_end}"
            )
        if not 0 < self.strength <= 1 or int(self.steps * self.strength) < 1:
            raise UserError(
                f"strength={self.strength}: expected more than 0 and at most 1, and "
                f"at least one of the {self.steps} steps"
            )
