"""Samplers: from noise to latents by repeated denoising.

A sampler steps a `denoise_fn(noisy_latents, timesteps) -> model_output` and knows
neither networks nor text.

DDIM without noise between the steps:

    z_s = √ᾱ_s ẑ_0 + √(1 − ᾱ_s) ε̂                                                (1)

Source: Song et al., "Denoising Diffusion Implicit Models", 2021, eq. 12 at η = 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from medjax.arrays import Array
from medjax.diffusion.schedule import Schedule, denoise
from medjax.errors import UserError

DenoiseFn = Callable[[Array, Array], Array]


def leading_timesteps(schedule: Schedule, steps: int) -> Int[np.ndarray, " s"]:
    """Return `steps` evenly spaced timesteps, falling, offset as the schedule says.

    Source: diffusers' "leading" spacing, which SD1.x was published with
    (`steps_offset` 1).

    Raises:
        UserError: If so many steps do not fit, or the schedule asks for other spacing.
    """
    spaced = schedule.config.get("timestep_spacing", "leading")
    if spaced != "leading":
        raise UserError(
            f"the schedule's timestep_spacing is '{spaced}'; expected 'leading'"
        )
    if not 1 <= steps <= schedule.num_timesteps:
        raise UserError(
            f"{steps} sampler steps over {schedule.num_timesteps} timesteps; expected "
            f"1 to {schedule.num_timesteps}"
        )
    spacing = schedule.num_timesteps // steps
    offset = schedule.config.get("steps_offset", 0)
    first = (steps - 1) * spacing + offset
    if first >= schedule.num_timesteps:
        raise UserError(
            f"{steps} sampler steps begin at timestep {first} of "
            f"{schedule.num_timesteps}, because steps_offset is {offset}; take fewer"
        )
    return np.arange(steps)[::-1] * spacing + offset


def ddim(
    denoise_fn: DenoiseFn,
    schedule: Schedule,
    noise: Float[Array, "b ..."],
    steps: int,
) -> Float[Array, "b ..."]:
    """Return the latents that `noise` becomes in `steps` steps (eq. 1).

    Args:
        denoise_fn: Gives the model's output for noisy latents at timesteps (b,).
        schedule: Its schedule.
        noise: Standard normal.
        steps: From 1 to T.
    """
    timesteps = leading_timesteps(schedule, steps)
    spacing = schedule.num_timesteps // steps
    to_one = schedule.config.get("set_alpha_to_one", True)
    final = 1.0 if to_one else schedule.alphas_cumprod[0]

    def step(latents: Array, t: Array) -> tuple[Array, None]:
        times = jnp.full(latents.shape[:1], t)
        output = denoise_fn(latents, times).astype(jnp.float32)
        pred_latents, pred_noise = denoise(schedule, output, latents, times)
        before = t - spacing
        alpha_bar = jnp.where(
            before >= 0, schedule.alphas_cumprod[jnp.maximum(before, 0)], final
        )
        latents = jnp.sqrt(alpha_bar) * pred_latents
        return latents + jnp.sqrt(1 - alpha_bar) * pred_noise, None

    latents, _ = jax.lax.scan(step, noise, jnp.asarray(timesteps))
    return latents
