"""Compute the training objective: the loss of each example.

    L = w(t) · mean over pixels of d(target − output)                            (1)
    w(t) = min(SNR, γ) / SNR           for ε                                     (2)
         = min(SNR, γ) / (SNR + 1)     for v
         = min(SNR, γ)                 for z_0
         = 1                           for v where SNR = 0                       (3)

where d(x) is x² (mse), |x| (l1), or x²/2 up to |x| = 1 and |x| − 1/2 above (smooth_l1).

With (2) alone, the weights of v and z_0 are 0 at a timestep without signal, where
sampling starts. There v is −z_0, and Lin et al. train it with weight 1. The authors of
(2) do the same in later code, which accepts such schedules (pull request 4 of
Min-SNR-Diffusion-Training on GitHub).

Sources: Ho et al., 2020, eq. 14 (1); Hang et al., "Efficient Diffusion Training via
Min-SNR Weighting Strategy", 2023, section 3.4 (2); Lin et al., "Common Diffusion Noise
Schedules and Sample Steps Are Flawed", 2024, section 3.2 (3).
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float, Int

from medjax.arrays import Array
from medjax.diffusion.schedule import PredictionType, Schedule, snr
from medjax.errors import UserError, check_fraction, check_least

LossKind = Literal["mse", "l1", "smooth_l1"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Prediction target of the network, and the weights of its errors.

    Attributes:
        prediction_type: Output of the network: epsilon (the noise), v_prediction (the
            velocity) or sample (the clean image or latents). None means the prediction
            type of the base model.
        loss: Distance d(x) between output and target: mse (x²), l1 (|x|) or smooth_l1
            (x²/2 up to |x| = 1, then |x| − 1/2).
        min_snr_gamma: Limit γ of the min-SNR weights, above 0, usually 5. The weight of
            a timestep is min(SNR, γ) / SNR for epsilon. None means equal weights. A
            schedule that ends without signal requires v_prediction here.
        noise_offset: Standard deviation of noise that is constant over each channel of
            an example, at least 0. It lets a model reach very dark and very bright
            images. 0 adds no such noise.
        timestep_bias_multiplier: How many times as often each of the noisiest timesteps
            is drawn as each other timestep, above 0. At these timesteps, a condition
            takes effect, for example the position of fluid. 1 draws all equally often.
        timestep_bias_portion: Share of timesteps that count as noisiest, in (0, 1).
    """

    prediction_type: PredictionType | None = None
    loss: LossKind = "mse"
    min_snr_gamma: float | None = None
    noise_offset: float = 0.0
    timestep_bias_multiplier: float = 1.0
    timestep_bias_portion: float = 0.25

    def __post_init__(self) -> None:
        """Refuse values outside the ranges above."""
        check_least(self, noise_offset=0)
        if not 0 < self.timestep_bias_multiplier < math.inf:
            raise UserError(
                f"timestep_bias_multiplier={self.timestep_bias_multiplier}: expected "
                "a finite number above 0"
            )
        if not 0 < self.timestep_bias_portion < 1:
            raise UserError(
                f"timestep_bias_portion={self.timestep_bias_portion}: expected a "
                "fraction in (0, 1)"
            )
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise UserError(
                f"min_snr_gamma={self.min_snr_gamma}: expected a number above 0, or "
                "None"
            )


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(ObjectiveConfig):
    """Objective of a network that reads captions. Its base model sets the schedule.

    Attributes:
        caption_dropout: Fraction of examples trained without their caption, in [0, 1].
            Guidance requires it, because it needs the output without a caption.
    """

    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values outside the ranges above."""
        super().__post_init__()
        check_fraction(self, "caption_dropout")


@dataclasses.dataclass(frozen=True)
class ScheduledDiffusionConfig(ObjectiveConfig):
    """Objective and noise schedule of a network without a base model.

    Attributes:
        label_dropout: Fraction of examples trained without their class, in [0, 1].
            Guidance requires it, because it needs the output without a class.
        num_train_timesteps: Number of timesteps T, at least 1.
        beta_schedule: linear, scaled_linear or squaredcos_cap_v2.
        beta_start: β at the first timestep, in (0, 1).
        beta_end: β at the last timestep, in (0, 1), at least `beta_start`.
        rescale_betas_zero_snr: Whether the last timestep contains no signal.
    """

    prediction_type: PredictionType = "epsilon"
    label_dropout: float = 0.1
    num_train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside the ranges above."""
        super().__post_init__()
        check_least(self, num_train_timesteps=1)
        check_fraction(self, "label_dropout")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"beta_start={self.beta_start:g}, beta_end={self.beta_end:g}: expected "
                "0 < beta_start <= beta_end < 1"
            )
        if self.rescale_betas_zero_snr:
            _check_zero_snr(self.prediction_type)


def check_objective(schedule: Schedule, objective: ObjectiveConfig) -> None:
    """Check that a network can learn its objective at every timestep of a schedule.

    Raises:
        UserError: If the schedule ends without signal and the objective cannot train
            the network there.
    """
    if schedule.alphas_cumprod[-1] == 0:
        try:
            _check_zero_snr(schedule.prediction_type, objective.min_snr_gamma)
        except UserError as error:
            raise UserError(f"config.diffusion.{error}") from error


def _check_zero_snr(predicts: PredictionType, gamma: float | None = None) -> None:
    if predicts == "epsilon":
        raise UserError(
            "prediction_type=epsilon cannot be trained: the noise schedule ends at "
            "zero SNR (rescale_betas_zero_snr), where the predicted noise contains no "
            "information about the image. Expected prediction_type=v_prediction or "
            "sample"
        )
    if predicts == "sample" and gamma is not None:
        raise UserError(
            f"min_snr_gamma={gamma:g} means weight 0 where sampling starts: the noise "
            "schedule ends at zero SNR (rescale_betas_zero_snr). Expected "
            "prediction_type=v_prediction, or min_snr_gamma=None"
        )


def min_snr_weights(
    schedule: Schedule, timesteps: Int[Array, " b"], gamma: float
) -> Float[Array, " b"]:
    """Return the weight of each example's loss (eq. 2, 3)."""
    ratio = snr(schedule, timesteps)
    clipped = jnp.minimum(ratio, gamma)
    if schedule.prediction_type == "epsilon":
        # At zero SNR both are 0, and their quotient tends to 1.
        return jnp.where(ratio > 0, clipped / jnp.where(ratio > 0, ratio, 1.0), 1.0)
    if schedule.prediction_type == "v_prediction":
        return jnp.where(ratio > 0, clipped / (ratio + 1), 1.0)
    return clipped


def errors(
    model_output: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    kind: LossKind = "mse",
    mask: Float[Array, "b h w 1"] | None = None,
) -> Float[Array, " b"]:
    """Return each example's mean error (eq. 1, without its weight) in float32.

    Args:
        model_output: The output of the network.
        target: The correct output.
        kind: Name of d in eq. 1: mse, l1 or smooth_l1.
        mask: Weight of each pixel. None means equal weights.
    """
    size = jnp.abs(model_output.astype(jnp.float32) - target.astype(jnp.float32))
    if kind == "mse":
        error = jnp.square(size)
    elif kind == "l1":
        error = size
    else:
        error = jnp.where(size < 1, 0.5 * jnp.square(size), size - 0.5)
    if mask is None:
        return error.mean(axis=(1, 2, 3))
    total = (error * mask).sum(axis=(1, 2, 3))
    return total / jnp.maximum(mask.sum(axis=(1, 2, 3)) * error.shape[-1], 1e-6)
