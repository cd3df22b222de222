"""Where a sampler stops on its way from noise to image.

A stop is a timestep, which the network is told, and the level there: √ᾱ of signal and
√(1 − ᾱ) of noise. Between the timesteps that a network was trained at, and at noise
that is spaced by its own measure, levels are interpolated:

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
# ᾱ at zero SNR, where a solver divides by the signal: float16's smallest number.
_IN_PLACE_OF_ZERO = 2.0**-24
_RHO = 7.0

Vector = Float[np.ndarray, " s"]


@dataclasses.dataclass(frozen=True)
class Stops:
    """A sampler's stops, in float64.

    Attributes:
        timesteps: What the network is told.
        alpha: √ᾱ there.
        sigma: √(1 − ᾱ) there.
        next_alpha: √ᾱ where the step from there leads.
        next_sigma: √(1 − ᾱ) there.
        steps: How many were asked for, also where only the last of them are taken.
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
        schedule: Of the training.
        options: ``timestep_spacing``, ``steps_offset``, ``set_alpha_to_one``, and
            ``to_next``: whether a step leads to the next stop, rather than T // steps
            timesteps down.
        steps: From 1 to T.
        begin: How many of them to leave out.

    Raises:
        UserError: If so many steps do not fit.
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
    """Return stops whose steps lead from one of the training's timesteps to another.

    Args:
        schedule: Of the training.
        options: ``set_alpha_to_one``: whether what lies below timestep 0 is the image
            itself, rather than timestep 0.
        timesteps: What the network is told.
        origin: Where each step begins.
        reached: Where it leads.
        steps: How many were asked for.
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
    """Return stops at noise levels, each step leading to the next one's.

    Args:
        schedule: Of the training.
        options: ``timestep_spacing``, ``steps_offset``, ``use_karras_sigmas``,
            ``final_sigmas_type``, ``lambda_min_clipped``, and ``whole``: whether
            timesteps are whole numbers, spaced as for one step more; ``cuts_cosine``:
            whether Karras's are cut, not rounded, on the cosine schedule.
        steps: From 1 to T.
        begin: How many of them to leave out.

    Raises:
        UserError: If so many steps do not fit.
    """
    alpha_bar = np.asarray(schedule.alphas_cumprod, np.float64)
    alpha_bar = np.where(alpha_bar > 0, alpha_bar, _IN_PLACE_OF_ZERO)
    noise = np.sqrt((1 - alpha_bar) / alpha_bar)
    least_lambda = options.get("lambda_min_clipped", -np.inf)
    # In falling λ = -log σ̃; clipped, the noisiest timesteps are left out.
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
    """Return falling timesteps, evenly spaced, perhaps not whole.

    Args:
        schedule: Of the training.
        options: ``timestep_spacing`` and ``steps_offset``.
        steps: How many, from 1 to T.
        kept: How many of the T, the least noisy ones, to spread them over; None: all.
        beyond_last: Whether to space for one more, and leave that out.

    Raises:
        UserError: If so many do not fit, or the spacing is unknown.
    """
    total = schedule.num_timesteps
    kept = total if kept is None else kept
    spacing, offset = options["timestep_spacing"], options.get("steps_offset", 0)
    if spacing not in SPACINGS:
        raise UserError(
            f"the schedule's timestep_spacing is '{spacing}'; expected one of "
            f"{', '.join(SPACINGS)}{nearest(str(spacing), SPACINGS)}"
        )
    if not 1 <= steps <= total:
        raise UserError(
            f"{steps} sampler steps over {total} timesteps; expected 1 to {total}"
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
            f"{steps} sampler steps begin at timestep {spaced[0]} of {total}, because "
            f"steps_offset is {offset}; take fewer"
        )
    return spaced.astype(np.float64)
