"""PNDM: DDIM steps along a mean of several outputs.

    z' = (α'/α) z + (σ' − α'σ/α) ε̂                                                  (1)

is DDIM's step (`solvers`, eq. 1, with ẑ_0 put in). PNDM takes for the output in ε̂ the
Adams-Bashforth mean of the last four. Until there are four it either makes three steps
of Runge-Kutta, four evaluations each, or, as Stable Diffusion does
(``skip_prk_steps``), begins with means of fewer and takes its first step twice.

Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022,
eq. 11 (1), 9 and 12 (the means), 13 (Runge-Kutta), as diffusers times them.
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
    """Return a stop an evaluation; its levels are those that eq. 1 leads between.

    Args:
        schedule: Of the training.
        options: ``skip_prk_steps``, and as `spacing.stops_at_timesteps`.
        steps: From 1 to T; from 4 where there are steps of Runge-Kutta.
        begin: How many of them to leave out.

    Raises:
        UserError: If so many steps do not fit.
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
                f"PNDM begins with {_RUNGE_KUTTA_STEPS} steps of Runge-Kutta, and only "
                f"{len(main)} are asked for; expected 4 or more, or skip_prk_steps in "
                "the schedule"
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
    """Return the updates; outputs, not noises, are averaged, whatever they predict."""
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
            # The one evaluation that repeats a stop is not counted.
            seen = 4 if warm_up else min(4, i + (i == 0))
            mean = _MEANS[seen - 1] @ np.stack(history[:seen])
        pred_noise = in_noise[i] @ np.stack([start, mean])
        signal = stops.next_alpha[i] / stops.alpha[i]
        ahead = signal * start
        ahead = ahead + (stops.next_sigma[i] - signal * stops.sigma[i]) * pred_noise
        updates.append([ahead, start, kept_total, *history[:3]])
    return np.array(updates)
