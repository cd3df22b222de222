"""Build the updates of PNDM: DDIM steps along a weighted mean of several outputs.

    z' = (α'/α) z + (σ' − α'σ/α) ε̂                                                  (1)

is the step of DDIM (eq. 1 of `solvers` with ẑ_0 inserted). PNDM computes ε̂ from the
Adams-Bashforth mean of the last four outputs. Until it has four, it takes three
Runge-Kutta steps of four evaluations each. With ``skip_prk_steps``, as in Stable
Diffusion, it uses means of fewer outputs, and takes its first step twice.

Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022,
eq. 11 (1), 9 and 12 (the means), 13 (Runge-Kutta), with the timesteps of diffusers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.diffusion.schedule import Schedule
from medjax.diffusion.solvers import Updates, noise_from_output, unit_rows
from medjax.diffusion.spacing import Stops, spaced_timesteps, stops_between
from medjax.errors import UserError

_MEANS = (
    np.array([1.0]),
    np.array([3.0, -1.0]) / 2,
    np.array([23.0, -16.0, 5.0]) / 12,
    np.array([55.0, -59.0, 37.0, -9.0]) / 24,
)
_STAGES = 4
_RUNGE_KUTTA_STEPS = 3


def stops_for_pndm(
    schedule: Schedule, options: Mapping[str, Any], steps: int, begin: int = 0
) -> Stops:
    """Return one stop per evaluation. Eq. 1 leads from its level to its next level.

    Args:
        schedule: The noise schedule of the training.
        options: ``skip_prk_steps``, and the options of `spacing.stops_at_timesteps`.
        steps: Number of steps, from 1 to T; at least 4 with Runge-Kutta steps.
        begin: Number of steps to skip at the start.

    Raises:
        UserError: If the number of steps does not fit.
    """
    stride = schedule.num_timesteps // steps
    main = spaced_timesteps(schedule, options, steps).round().astype(int)[begin:]
    if options["skip_prk_steps"]:
        told = np.insert(main, 2, main[1:2]) if len(main) > 1 else main
        origin, reached = told.copy(), told - stride
        origin[1:2], reached[1:2] = told[1:2] + stride, told[1:2]
    else:
        if len(main) <= _RUNGE_KUTTA_STEPS:
            raise UserError(
                f"sampler pndm cannot use {len(main)} steps, because it begins with "
                f"{_RUNGE_KUTTA_STEPS} Runge-Kutta steps; expected 4 or more, or "
                "skip_prk_steps=True in the model's scheduler configuration"
            )
        half = stride // 2
        begins, ends = main[:_RUNGE_KUTTA_STEPS], main[1 : _RUNGE_KUTTA_STEPS + 1]
        rest = main[_RUNGE_KUTTA_STEPS:]
        told = np.stack([begins, ends + half, ends + half, ends], 1).reshape(-1)
        reached = np.stack([begins - half, ends + half, ends, ends], 1).reshape(-1)
        origin = np.append(begins.repeat(_STAGES), rest)
        told, reached = np.append(told, rest), np.append(reached, rest - stride)
    return stops_between(schedule, options, told, origin, reached, steps)


def pndm(stops: Stops, prediction_type: str, options: Mapping[str, Any]) -> Updates:
    """Return the updates. They average the network's outputs, not ε̂."""
    z, base, total, first, second, third, output, _, _ = unit_rows(6)
    in_noise = noise_from_output(stops, prediction_type)
    warm_up = 0 if options["skip_prk_steps"] else _STAGES * _RUNGE_KUTTA_STEPS
    none = np.zeros_like(z)
    updates = []
    for i in range(len(stops)):
        history = [output, first, second, third]
        stage = i % _STAGES
        kept_total = none
        if i < warm_up:
            start = z if stage == 0 else base
            if stage > 0:
                history = [first, second, third]
            weight = (1 / 6, 1 / 3, 1 / 3, 1 / 6)[stage]
            mean = total + weight * output if stage == 3 else output
            if stage < 3:
                kept_total = (none if stage == 0 else total) + weight * output
        elif i == 1 and not warm_up:
            start, mean = base, (output + first) / 2
            history = [first, second, third]
        else:
            start = z
            # Do not count the one evaluation that repeats a stop.
            seen = 4 if warm_up else min(4, i + (i == 0))
            mean = _MEANS[seen - 1] @ np.stack(history[:seen])
        pred_noise = in_noise[i] @ np.stack([start, mean])
        signal = stops.next_alpha[i] / stops.alpha[i]
        ahead = signal * start
        ahead = ahead + (stops.next_sigma[i] - signal * stops.sigma[i]) * pred_noise
        updates.append([ahead, start, kept_total, *history[:3]])
    return np.array(updates)
