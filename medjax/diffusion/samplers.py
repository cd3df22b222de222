"""Samplers: from noise to latents by repeated denoising.

A sampler steps a `denoise_fn(noisy_latents, timesteps, step) -> model_output`, and
knows neither networks nor text. `make_plan` works out on the host what it will do,
`sample` does it, in one loop that compiles to one program. `solvers` has the
mathematics, `schedulers` the list.
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
"""(noisy latents, timesteps (b,), number of the step) to the network's output."""
NoiseFn = Callable[[Array], Array]
"""From the number of a step to fresh noise for it, shaped as the latents."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All that a sampler does, but for the network and the noise.

    Attributes:
        timesteps: What the network is told, one an evaluation.
        to_latents: a, b of ẑ_0 = a z + b output.
        updates: See `solvers`.
        clip: Largest absolute value of ẑ_0, or None.
        first: α and σ at the first stop.
        noise_scale: What standard normal noise is multiplied by to begin there.
        stochastic: Whether there is fresh noise in any step.
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
    """Work out what a sampler will do.

    Args:
        name: One of `schedulers.SAMPLERS`.
        schedule: What the network was trained on; its configuration's keys count where
            the sampler reads them.
        steps: From 1 to T.
        eta: In [0, 1], for DDIM: how much fresh noise.
        begin: How many of the steps to leave out, to begin from a noisy image.

    Raises:
        UserError: If there is no such sampler, or it cannot do what is asked.
    """
    sampler = find_sampler(name)
    options = sampler_options(name, sampler, schedule, eta)
    if begin and not 0 <= begin < steps:
        raise UserError(
            f"the first {begin} of {steps} steps are left out; none is left"
        )
    stops = sampler.stops(schedule, options, steps, begin)
    with np.errstate(divide="ignore", invalid="ignore"):
        updates = sampler.updates(stops, schedule.prediction_type, options)
    if sampler.by_level:
        # In their own scale the signal is always 1, also where noise is left.
        updates[-1] /= stops.next_alpha[-1]
    if not np.isfinite(updates).all():
        raise UserError(
            f"sampler {name} cannot take {steps} steps, two of which would stop at one "
            "level of noise; take fewer"
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
    """Return the latents that `start` becomes; see `trace`."""
    return trace(plan, denoise_fn, start, noise_fn, 1)[0]


def trace(
    plan: Plan,
    denoise_fn: DenoiseFn,
    start: Float[Array, "b ..."],
    noise_fn: NoiseFn | None,
    frames: int,
) -> Float[Array, "n b ..."]:
    """Return stages of the way from `start` to latents.

    Args:
        plan: What to do.
        denoise_fn: The network.
        start: z at the first stop: `plan.noise_scale` times standard normal noise, or
            an image with noise as `plan.first` says.
        noise_fn: Gives the fresh noise; None where the plan is not stochastic.
        frames: How many at most: evenly spaced, `start` being the first; or 1, the
            result. A plan of s evaluations has s + 1 stages to show, and no more.
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
        # Accelerators would else multiply in half precision.
        memory = jnp.tensordot(update, seen, 1, precision=jax.lax.Precision.HIGHEST)
        # The last step that writes a stage is the one that counts.
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
