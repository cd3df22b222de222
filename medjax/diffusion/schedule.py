"""Define the noise schedule: the levels of signal and noise at each timestep.

    z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε                                                (1)
    v_t = √ᾱ_t ε − √(1 − ᾱ_t) z_0                                                (2)
    SNR_t = ᾱ_t / (1 − ᾱ_t)                                                      (3)

With α = √ᾱ and σ = √(1 − ᾱ), any one of ε, v and z_0 gives the others:

    z_0 = (z_t − σ ε) / α = α z_t − σ v                                          (4)
    ε = (z_t − α z_0) / σ = α v + σ z_t                                          (5)

Sources: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, eq. 4 (1);
Salimans and Ho, "Progressive Distillation", 2022, appendix D (2, 4, 5); Lin et al.,
"Common Diffusion Noise Schedules and Sample Steps Are Flawed", 2024, algorithm 1
(zero terminal SNR).
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from medjax.arrays import Array
from medjax.errors import UserError, nearest

PredictionType = Literal["epsilon", "v_prediction", "sample"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule, and the prediction type of the network trained on it.

    Attributes:
        alphas_cumprod: ᾱ_t in [0, 1], falling with t.
        prediction_type: epsilon, v_prediction or sample, if the output is ε, v or z_0.
        config_json: The diffusers scheduler configuration of the schedule, as JSON.
    """

    alphas_cumprod: Float[Array, " T"]
    prediction_type: PredictionType = dataclasses.field(
        default="epsilon", metadata={"static": True}
    )
    config_json: str = dataclasses.field(default="{}", metadata={"static": True})

    @property
    def config(self) -> dict[str, Any]:
        """The diffusers scheduler configuration."""
        return json.loads(self.config_json)

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps."""
        return self.alphas_cumprod.shape[0]


def make_schedule(
    config: Mapping[str, Any], prediction_type: PredictionType | None = None
) -> Schedule:
    """Build a schedule from a diffusers `scheduler_config.json`.

    Args:
        config: Keys `num_train_timesteps`, `beta_schedule` (linear, scaled_linear,
            squaredcos_cap_v2), `beta_start`, `beta_end`, `trained_betas`,
            `rescale_betas_zero_snr`, `prediction_type`. Other keys are kept, not read.
        prediction_type: Replaces the configuration's. None keeps it.

    Raises:
        UserError: If the beta schedule or the prediction type is unknown.
    """
    config = dict(config)
    if prediction_type is not None:
        config["prediction_type"] = prediction_type
    kind = config.get("prediction_type", "epsilon")
    if kind not in get_args(PredictionType):
        raise UserError(
            f"prediction_type='{kind}': expected one of {get_args(PredictionType)}"
            + nearest(str(kind), get_args(PredictionType))
        )
    alphas_cumprod = np.cumprod(1 - _betas(config))
    if config.get("rescale_betas_zero_snr"):
        alphas_cumprod = _rescale_to_zero_snr(alphas_cumprod)
    return Schedule(
        jnp.asarray(alphas_cumprod, jnp.float32), kind, json.dumps(config, default=list)
    )


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    steps = config.get("num_train_timesteps", 1000)
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    if kind == "linear":
        return np.linspace(first, last, steps)
    if kind == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, steps) ** 2
    if kind == "squaredcos_cap_v2":
        grid = np.arange(steps + 1) / steps
        alpha_bar = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    known = ("linear", "scaled_linear", "squaredcos_cap_v2")
    raise UserError(
        f"beta_schedule='{kind}': expected one of {', '.join(known)}"
        + nearest(str(kind), known)
    )


def _rescale_to_zero_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shift and stretch √ᾱ so that it ends at exactly zero and begins as before."""
    alpha = np.sqrt(alphas_cumprod)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def _alpha_sigma(
    schedule: Schedule, timesteps: Int[Array, " b"], ndim: int
) -> tuple[Array, Array]:
    alpha_bar = schedule.alphas_cumprod[timesteps]
    alpha_bar = alpha_bar.reshape(-1, *(1,) * (ndim - 1))
    return jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)


def add_noise(
    schedule: Schedule,
    latents: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    timesteps: Int[Array, " b"],
) -> Float[Array, "b ..."]:
    """Return the noisy latents at `timesteps` (eq. 1)."""
    alpha, sigma = _alpha_sigma(schedule, timesteps, latents.ndim)
    return alpha * latents + sigma * noise


def target(
    schedule: Schedule,
    latents: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    timesteps: Int[Array, " b"],
) -> Float[Array, "b ..."]:
    """Return the correct output of the network: ε, v (eq. 2) or z_0."""
    alpha, sigma = _alpha_sigma(schedule, timesteps, latents.ndim)
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "v_prediction":
        return alpha * noise - sigma * latents
    return latents


def denoise(
    schedule: Schedule,
    model_output: Float[Array, "b ..."],
    noisy_latents: Float[Array, "b ..."],
    timesteps: Int[Array, " b"],
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    """Return the latents and the noise that the network's output implies (eq. 4, 5).

    At zero SNR an ε-prediction contains no information about the latents, and the
    result is infinite. Such schedules require v or sample prediction.
    """
    alpha, sigma = _alpha_sigma(schedule, timesteps, noisy_latents.ndim)
    if schedule.prediction_type == "epsilon":
        return (noisy_latents - sigma * model_output) / alpha, model_output
    if schedule.prediction_type == "v_prediction":
        return (
            alpha * noisy_latents - sigma * model_output,
            alpha * model_output + sigma * noisy_latents,
        )
    return model_output, (noisy_latents - alpha * model_output) / sigma


def snr(schedule: Schedule, timesteps: Int[Array, " b"]) -> Float[Array, " b"]:
    """Return the signal-to-noise ratio at `timesteps` (eq. 3)."""
    alpha_bar = schedule.alphas_cumprod[timesteps]
    return alpha_bar / (1 - alpha_bar)
