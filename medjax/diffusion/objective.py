"""The training objective: how wrong was the network, in each example?

    L = w(t) · mean over pixels of (target − output)²                            (1)
    w(t) = min(SNR, γ) / SNR           for ε                                     (2)
         = min(SNR, γ) / (SNR + 1)     for v
         = min(SNR, γ)                 for z_0

Sources: Ho et al., 2020, eq. 14 (1); Hang et al., "Efficient Diffusion Training via
Min-SNR Weighting Strategy", 2023, section 3.4 (2).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Float, Int

from medjax.arrays import Array
from medjax.diffusion.schedule import PredictionType, Schedule, snr
from medjax.errors import UserError, check_least


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """What is asked of the network, and how mistakes are weighed.

    Attributes:
        prediction_type: epsilon, v_prediction or sample; None keeps the base's own.
        min_snr_gamma: γ of eq. 2, usually 5; None weighs all timesteps alike.
        noise_offset: Standard deviation of noise that is the same over each channel of
            an example, which lets a model reach very dark and very bright images;
            0 adds none.
        caption_dropout: Fraction of examples trained without their caption, in [0, 1],
            which is what makes guidance possible.
    """

    prediction_type: PredictionType | None = None
    min_snr_gamma: float | None = None
    noise_offset: float = 0.0
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values outside the ranges above."""
        check_least(self, noise_offset=0)
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise UserError(
                f"min_snr_gamma is {self.min_snr_gamma}, expected a number above 0, or "
                "None"
            )
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(
                f"caption_dropout is {self.caption_dropout}, expected a fraction in "
                "[0, 1]"
            )


def min_snr_weights(
    schedule: Schedule, timesteps: Int[Array, " b"], gamma: float
) -> Float[Array, " b"]:
    """Return the weight of each example's loss (eq. 2)."""
    ratio = snr(schedule, timesteps)
    clipped = jnp.minimum(ratio, gamma)
    if schedule.prediction_type == "epsilon":
        # At zero SNR both are zero, and the limit of their quotient is one.
        return jnp.where(ratio > 0, clipped / jnp.where(ratio > 0, ratio, 1.0), 1.0)
    if schedule.prediction_type == "v_prediction":
        return clipped / (ratio + 1)
    return clipped


def squared_error(
    model_output: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    mask: Float[Array, "b h w 1"] | None = None,
) -> Float[Array, " b"]:
    """Return each example's mean squared error (eq. 1) in float32.

    Args:
        model_output: The network's.
        target: What it should have been.
        mask: Weight of each place; None weighs all alike.
    """
    error = jnp.square(model_output.astype(jnp.float32) - target.astype(jnp.float32))
    if mask is None:
        return error.mean(axis=(1, 2, 3))
    total = (error * mask).sum(axis=(1, 2, 3))
    return total / jnp.maximum(mask.sum(axis=(1, 2, 3)) * error.shape[-1], 1e-6)
