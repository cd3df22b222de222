"""Choose the stops of a sampler between noise and image.

A stop is a timestep, which the network receives, and a level: √ᾱ of signal and
√(1 − ᾱ) of noise. Levels are interpolated (1) between the timesteps of the training.
Karras's spacing chooses the levels by the noise itself (2):

    σ̃ = √((1 − ᾱ) / ᾱ),   alpha = 1 / √(1 + σ̃²),   sigma = σ̃ alpha                  (1)
    σ̃_i = (σ̃_max^(1/ρ) + i/(s − 1) (σ̃_min^(1/ρ) − σ̃_max^(1/ρ)))^ρ,   ρ = 7           (2)

Sources: the spacings, Lin et al., 2024, table 2, as diffusers rounds them; Karras et
al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 1
(1, the variance-preserving column) and eq. 5 (2).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from medjax.diffusion.schedule import Schedule
from medjax.errors import UserError, nearest

SPACINGS = ("leading", "linspace", "trailing")
# ᾱ at zero SNR, because solvers divide by the signal: float16's smallest number.
_IN_PLACE_OF_ZERO = 2.0**-24
_RHO = 7.0

Vector = Float[np.ndarray, " s"]


@dataclasses.dataclass(frozen=True)
class Stops:
    """A sampler's stops, in float64.

    Attributes:
        timesteps: Timestep that the network receives at each stop.
        alpha: √ᾱ at each stop.
        sigma: √(1 − ᾱ) at each stop.
        next_alpha: √ᾱ at the end of the step from each stop.
        next_sigma: √(1 − ᾱ) at the end of that step.
        steps: Number of steps requested, including those skipped at the start.
    """

    timesteps: Vector
    alpha: Vector
    sigma: Vector
    next_alpha: Vector
    next_sigma: Vector
    steps: int

    def __len__(self) -> int:
        return len(self.timesteps)


def stops_at_timesteps(
    schedule: Schedule, options: Mapping[str, Any], steps: int, begin: int = 0
) -> Stops:
    """Return stops at timesteps of the training.

    Args:
        schedule: The noise schedule of the training.
        options: ``timestep_spacing``, ``steps_offset``, ``set_alpha_to_one``, and
            ``to_next``: whether a step leads to the next stop, or T // steps timesteps
            down.
        steps: Number of steps, from 1 to T.
        begin: Number of steps to skip at the start.

    Raises:
        UserError: If the number of steps does not fit.
    """
    timesteps = spaced_timesteps(schedule, options, steps).round().astype(int)
    reached = timesteps - schedule.num_timesteps // steps
    if options["to_next"]:
        reached = np.append(timesteps[1:], -1)
    chosen = slice(begin, None)
    timesteps, reached = timesteps[chosen], reached[chosen]
    return stops_between(schedule, options, timesteps, timesteps, reached, steps)


def stops_between(
    schedule: Schedule,
    options: Mapping[str, Any],
    timesteps: Int[np.ndarray, " s"],
    origin: Int[np.ndarray, " s"],
    reached: Int[np.ndarray, " s"],
    steps: int,
) -> Stops:
    """Return stops whose steps lead from one timestep of the training to another.

    Args:
        schedule: The noise schedule of the training.
        options: ``set_alpha_to_one``: whether a step below timestep 0 leads to the
            image itself (ᾱ = 1), or to the level of timestep 0.
        timesteps: Timestep that the network receives at each stop.
        origin: Timestep where each step begins.
        reached: Timestep where each step ends; negative below timestep 0.
        steps: Number of steps requested.
    """
    alpha_bar = np.asarray(schedule.alphas_cumprod, np.float64)
    final = 1.0 if options["set_alpha_to_one"] else alpha_bar[0]
    next_bar = np.where(reached >= 0, alpha_bar[reached], final)
    return _stops(timesteps, alpha_bar[origin], next_bar, steps)


def stops_at_levels(
    schedule: Schedule,
    options: Mapping[str, Any],
    steps: int,
    begin: int = 0,
) -> Stops:
    """Return stops at noise levels, where each step leads to the next level.

    Args:
        schedule: The noise schedule of the training.
        options: ``timestep_spacing``, ``steps_offset``, ``use_karras_sigmas``,
            ``final_sigmas_type``, ``lambda_min_clipped``; ``whole``: whether timesteps
            are whole numbers, spaced as for one more step; ``cuts_cosine``: whether
            Karras's timesteps are cut, not rounded, on the cosine schedule.
        steps: Number of steps, from 1 to T.
        begin: Number of steps to skip at the start.

    Raises:
        UserError: If the number of steps does not fit.
    """
    alpha_bar = np.asarray(schedule.alphas_cumprod, np.float64)
    alpha_bar = np.where(alpha_bar > 0, alpha_bar, _IN_PLACE_OF_ZERO)
    noise = np.sqrt((1 - alpha_bar) / alpha_bar)
    least_lambda = options.get("lambda_min_clipped", -np.inf)
    # λ = -log σ̃ falls with the timestep. The limit leaves out the noisiest timesteps.
    kept = int(np.sum(-np.log(noise) >= float(least_lambda)))
    whole = options["whole"]
    timesteps = spaced_timesteps(schedule, options, steps, kept, whole)
    timesteps = timesteps.round() if whole else timesteps
    levels = np.interp(timesteps, np.arange(len(noise)), noise)
    if options.get("use_karras_sigmas"):
        ends = (noise[-1], noise[0]) if whole else (levels[0], levels[-1])
        levels = _karras(*ends, len(timesteps))
        timesteps = np.interp(np.log(levels), np.log(noise), np.arange(len(noise)))
        if whole:
            cosine = schedule.config.get("beta_schedule") == "squaredcos_cap_v2"
            cut = cosine and options.get("cuts_cosine")
            timesteps = np.trunc(timesteps) if cut else timesteps.round()
    final = noise[0] if options.get("final_sigmas_type") == "sigma_min" else 0.0
    levels = np.append(levels, final)
    bars = 1 / (1 + levels**2)
    return _stops(timesteps[begin:], bars[begin:-1], bars[begin + 1 :], steps)


def _stops(
    timesteps: Num[np.ndarray, " s"], bar: Vector, next_bar: Vector, steps: int
) -> Stops:
    return Stops(
        timesteps.astype(np.float64),
        alpha=np.sqrt(bar),
        sigma=np.sqrt(1 - bar),
        next_alpha=np.sqrt(next_bar),
        next_sigma=np.sqrt(1 - next_bar),
        steps=steps,
    )


def _karras(most: float, least: float, steps: int) -> Vector:
    """Return noise levels spaced by eq. 2."""
    first, last = most ** (1 / _RHO), least ** (1 / _RHO)
    return np.linspace(first, last, steps) ** _RHO


def spaced_timesteps(
    schedule: Schedule,
    options: Mapping[str, Any],
    steps: int,
    kept: int | None = None,
    beyond_last: bool = False,
) -> Vector:
    """Return falling timesteps, evenly spaced, not necessarily whole.

    Args:
        schedule: The noise schedule of the training.
        options: ``timestep_spacing`` and ``steps_offset``.
        steps: Number of timesteps to return, from 1 to T.
        kept: Number of the least noisy timesteps to choose from. None means all T.
        beyond_last: Whether to space for one more timestep, and omit the last.

    Raises:
        UserError: If the number of steps does not fit, or the spacing is unknown.
    """
    total = schedule.num_timesteps
    kept = total if kept is None else kept
    spacing, offset = options["timestep_spacing"], options.get("steps_offset", 0)
    if spacing not in SPACINGS:
        raise UserError(
            f"timestep_spacing='{spacing}' in the model's scheduler configuration: "
            f"expected one of {', '.join(SPACINGS)}{nearest(str(spacing), SPACINGS)}"
        )
    if not 1 <= steps <= total:
        raise UserError(
            f"cannot use {steps} sampler steps with {total} training timesteps; "
            f"expected 1 to {total}"
        )
    count = steps + beyond_last
    if spacing == "trailing":
        spaced = np.arange(kept, 0, -total / steps).round() - 1
        return spaced[spaced >= 0]
    if spacing == "linspace":
        return np.linspace(0, kept - 1, count)[::-1][:steps]
    spaced = np.arange(count)[::-1][:steps] * (kept // count) + offset
    if spaced[0] >= total:
        raise UserError(
            f"{steps} sampler steps begin at timestep {spaced[0]}, but a timestep must "
            f"be below {total}. The cause is steps_offset={offset}. Use fewer steps"
        )
    return spaced.astype(np.float64)
