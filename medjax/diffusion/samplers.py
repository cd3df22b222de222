"""Sample latents from noise by repeated denoising.

A sampler calls a `denoise_fn(noisy_latents, timesteps, step) -> model_output` at each
step. It does not depend on networks or text. `make_plan` computes all coefficients on
the host. `sample` applies them in one loop that compiles to one program. `solvers` has
the mathematics, `schedulers` the list of samplers.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from medjax.arrays import Array
from medjax.diffusion import solvers
from medjax.diffusion.schedule import Schedule
from medjax.diffusion.schedulers import find_sampler, sampler_options
from medjax.errors import UserError

DenoiseFn = Callable[[Array, Array, Array], Array]
"""Maps (noisy latents, timesteps (b,), index of the step) to the network's output."""
NoiseFn = Callable[[Array], Array]
"""Maps the index of a step to its fresh noise, in the shape of the latents."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All coefficients of a sampler, without the network and the noise.

    Attributes:
        timesteps: Timestep that the network receives at each evaluation.
        to_latents: a, b of ẑ_0 = a z + b output, for each evaluation.
        updates: Matrix of each evaluation; see `solvers`.
        clip: Largest absolute value of ẑ_0. None means no limit.
        first: α and σ at the first stop.
        noise_scale: Factor on standard normal noise that gives z at the first stop.
        stochastic: Whether any step adds fresh noise.
    """

    timesteps: Float[np.ndarray, " s"]
    to_latents: solvers.Pairs
    updates: solvers.Updates
    clip: float | None
    first: tuple[float, float]
    noise_scale: float
    stochastic: bool


def make_plan(
    name: str, schedule: Schedule, steps: int, eta: float = 0.0, begin: int = 0
) -> Plan:
    """Compute the coefficients of a sampler.

    Args:
        name: One of `schedulers.SAMPLERS`.
        schedule: The noise schedule of the training. The sampler reads some keys of its
            configuration.
        steps: Number of steps, from 1 to T.
        eta: Amount of fresh noise in DDIM, in [0, 1].
        begin: Number of steps to skip at the start, to begin from a noisy image.

    Raises:
        UserError: If the sampler is unknown, or does not support the schedule, the
            steps or `eta`.
    """
    sampler = find_sampler(name)
    options = sampler_options(name, sampler, schedule, eta)
    if begin and not 0 <= begin < steps:
        raise UserError(
            f"cannot skip the first {begin} of {steps} sampler steps; skip fewer"
        )
    stops = sampler.stops(schedule, options, steps, begin)
    with np.errstate(divide="ignore", invalid="ignore"):
        updates = sampler.updates(stops, schedule.prediction_type, options)
    if sampler.by_level:
        # diffusers keeps the signal at 1, also at a level with remaining noise.
        updates[-1] /= stops.next_alpha[-1]
    if not np.isfinite(updates).all():
        raise UserError(
            f"sampler {name} cannot use {steps} steps, because two of them stop at "
            "the same noise level. Use fewer steps"
        )
    spread = options["timestep_spacing"] in ("linspace", "trailing")
    return Plan(
        timesteps=stops.timesteps.astype(np.float32),
        to_latents=solvers.latents_from_output(stops, schedule.prediction_type),
        updates=updates,
        clip=options["clip_sample_range"] if options.get("clip_sample") else None,
        first=(float(stops.alpha[0]), float(stops.sigma[0])),
        noise_scale=float(stops.sigma[0]) if sampler.by_level and spread else 1.0,
        stochastic=bool(updates[:, :, -1].any()),
    )


def sample(
    plan: Plan,
    denoise_fn: DenoiseFn,
    start: Float[Array, "b ..."],
    noise_fn: NoiseFn | None = None,
) -> Float[Array, "b ..."]:
    """Return the latents that sampling from `start` gives; see `trace`."""
    return trace(plan, denoise_fn, start, noise_fn, 1)[0]


def trace(
    plan: Plan,
    denoise_fn: DenoiseFn,
    start: Float[Array, "b ..."],
    noise_fn: NoiseFn | None,
    frames: int,
) -> Float[Array, "n b ..."]:
    """Return stages of the sampling from `start` to the latents.

    Args:
        plan: The coefficients of the sampler.
        denoise_fn: The network.
        start: z at the first stop: `plan.noise_scale` times standard normal noise, or
            an image mixed with noise by the factors `plan.first`.
        noise_fn: Returns the fresh noise. None if the plan is not stochastic.
        frames: Largest number n of stages. They are evenly spaced and begin with
            `start`; 1 returns only the result. A plan of s evaluations has s + 1
            stages.
    """
    frames = min(frames, len(plan.timesteps) + 1)
    memory = jnp.zeros((plan.updates.shape[1], *start.shape), jnp.float32)
    memory = memory.at[0].set(start)
    stages = jnp.zeros((frames, *start.shape), jnp.float32).at[0].set(start)

    def step(
        carry: tuple[Array, Array], now: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], None]:
        (memory, stages), (number, stage, timestep, (a, b), update) = carry, now
        z = memory[0]
        output = denoise_fn(z, jnp.full(z.shape[:1], timestep), number)
        output = output.astype(jnp.float32)
        latents = a * z + b * output
        if plan.clip is not None:
            latents = jnp.clip(latents, -plan.clip, plan.clip)
        fresh = noise_fn(number) if noise_fn and plan.stochastic else jnp.zeros_like(z)
        seen = jnp.concatenate([memory, jnp.stack([output, latents, fresh])])
        # The default precision on accelerators is half precision.
        memory = jnp.tensordot(update, seen, 1, precision=jax.lax.Precision.HIGHEST)
        # Several steps can write one stage. The last one counts.
        return (memory, stages.at[stage].set(memory[0])), None

    number = np.arange(len(plan.timesteps))
    stage = -(-(number + 1) * (frames - 1) // len(number))
    table = (number, stage, plan.timesteps, plan.to_latents, plan.updates)
    (_, stages), _ = jax.lax.scan(step, (memory, stages), _as_float32(table))
    return stages


def _as_float32(table: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
    return tuple(
        jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else jnp.float32) for x in table
    )
