"""Build the tables of linear updates by which each sampler steps.

These samplers are linear in the latents and outputs so far. Let z be the noisy latents,
and ẑ_0 and ε̂ the latents and noise that the network's output implies
(`schedule.denoise`). A step leads from level (α, σ) to level (α', σ'), and n is fresh
noise. The samplers then differ only in a row of coefficients:

    z' = α' ẑ_0 + √(σ'² − s²) ε̂ + s n,   s = η (σ'/σ) √(1 − α²/α'²)     DDIM       (1)
    z' = (α'β ẑ_0 + (α/α') σ'² z) / σ² + s n,   β = 1 − α²/α'²          DDPM       (2)
    z' = (σ'/σ) z − α' (e^(−h) − 1) (ẑ_0 + (ẑ_0 − ẑ_0⁻) h / 2h⁻)        DPM++ 2M   (3)

where h is the length of the step in λ = log α/σ, and ⁻ marks the previous step. Euler's
method over σ/α is (1) with η = 0, and its ancestral form is (1) with η = 1. UniPC
corrects each z by the output there before it takes the next step.

A solver therefore computes one matrix per step, in float64 on the host. The matrix maps
the memory, the output, ẑ_0 and n to the next memory. The first row of the memory is z,
the next input of the network.

The solver of PNDM is in `pndm`, because its stops differ.

Sources: Song et al., "Denoising Diffusion Implicit Models", 2021, eq. 12 and 16 (1);
Ho et al., 2020, eq. 7 (2); Lu et al., "DPM-Solver++", 2022, algorithm 2 (3); Zhao et
al., "UniPC", 2023, algorithms 5 to 8 with B(h) = e^h − 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from medjax.diffusion.spacing import Stops, Vector
from medjax.errors import UserError

Updates = Float[np.ndarray, "s m m+3"]
Pairs = Float[np.ndarray, "s 2"]
Row = Float[np.ndarray, " r"]


def latents_from_output(stops: Stops, prediction_type: str) -> Pairs:
    """Return a, b of ẑ_0 = a z + b output (`schedule`, eq. 4) at each stop.

    Raises:
        UserError: If the network predicts ε and a stop has no signal.
    """
    alpha, sigma = stops.alpha, stops.sigma
    if prediction_type == "sample":
        return np.stack([np.zeros_like(alpha), np.ones_like(alpha)], 1)
    if prediction_type == "v_prediction":
        return np.stack([alpha, -sigma], 1)
    if not alpha.all():
        raise UserError(
            "prediction_type=epsilon: cannot sample at zero SNR, because the predicted "
            "noise contains no information about the image there. Use a model with "
            "prediction_type=v_prediction or sample"
        )
    return np.stack([1 / alpha, -sigma / alpha], 1)


def noise_from_output(stops: Stops, prediction_type: str) -> Pairs:
    """Return a, b of ε̂ = a z + b output (`schedule`, eq. 5) at each stop."""
    alpha, sigma = stops.alpha, stops.sigma
    if prediction_type == "sample":
        return np.stack([1 / sigma, -alpha / sigma], 1)
    if prediction_type == "v_prediction":
        return np.stack([sigma, alpha], 1)
    return np.stack([np.zeros_like(alpha), np.ones_like(alpha)], 1)


def ddim(stops: Stops, prediction_type: str, options: Mapping[str, Any]) -> Updates:
    """Return the updates of eq. 1; ``options["eta"]`` is η."""
    z, output, latents, noise = unit_rows(1)
    variance = stops.next_sigma**2 * _betas(stops) / stops.sigma**2
    deviation = options["eta"] * np.sqrt(variance)
    direction = np.sqrt(np.maximum(stops.next_sigma**2 - deviation**2, 0))
    pred_noise = noise_from_output(stops, prediction_type) @ np.stack([z, output])
    return np.stack(
        [
            [
                stops.next_alpha[i] * latents
                + direction[i] * pred_noise[i]
                + deviation[i] * noise
            ]
            for i in range(len(stops))
        ]
    )


def ddpm(stops: Stops, prediction_type: str, options: Mapping[str, Any]) -> Updates:
    """Return the updates of eq. 2; ``options["variance_type"]`` chooses s."""
    z, _, latents, noise = unit_rows(1)
    beta = _betas(stops)
    variance = np.maximum(stops.next_sigma**2 * beta / stops.sigma**2, 1e-20)
    large = options["variance_type"].startswith("fixed_large")
    deviation = np.sqrt(beta if large else variance)
    # The step at timestep 0 returns the mean, without noise.
    deviation = np.where(stops.timesteps > 0, deviation, 0)
    to_latents = stops.next_alpha * beta / stops.sigma**2
    to_z = stops.alpha / stops.next_alpha * stops.next_sigma**2 / stops.sigma**2
    return np.stack(
        [
            [to_latents[i] * latents + to_z[i] * z + deviation[i] * noise]
            for i in range(len(stops))
        ]
    )


def dpmpp_2m(stops: Stops, prediction_type: str, options: Mapping[str, Any]) -> Updates:
    """Return the updates of eq. 3.

    The first step is of first order. The last step is too, if σ' = 0 or an option is
    set.
    """
    z, before, _, latents, _ = unit_rows(2)
    steps = _log_steps(stops)
    few = options["lower_order_final"] and stops.steps < 15
    updates = []
    for i in range(len(stops)):
        last = i == len(stops) - 1
        first_order = i == 0 or (
            last and (options["euler_at_final"] or few or stops.next_sigma[i] == 0)
        )
        slope = np.zeros_like(z)
        if not first_order:
            slope = (latents - before) * steps[i] / steps[i - 1]
        ahead = stops.next_sigma[i] / stops.sigma[i] * z
        ahead = ahead - stops.next_alpha[i] * np.expm1(-steps[i]) * latents
        if not first_order:
            ahead = ahead - 0.5 * stops.next_alpha[i] * np.expm1(-steps[i]) * slope
        updates.append([ahead, latents])
    return np.array(updates)


def unipc(stops: Stops, prediction_type: str, options: Mapping[str, Any]) -> Updates:
    """Return the updates of UniPC of order 2: correct z, then predict the next z."""
    z, corrected, older, oldest, _, latents, _ = unit_rows(4)
    steps = _log_steps(stops)
    updates = []
    order = 0
    for i in range(len(stops)):
        here = z
        if i > 0:
            # Minus the length of the step before last, divided by the last step's.
            ratio = -steps[i - 2] / steps[i - 1] if order == 2 else None
            here = _unipc_step(
                stops, i - 1, steps, corrected, older, oldest, ratio, latents
            )
        left = len(stops) - i
        order = min(2, i + 1, left if options["lower_order_final"] else 2)
        ratio = -steps[i - 1] / steps[i] if order == 2 else None
        ahead = _unipc_step(stops, i, steps, here, latents, older, ratio, None)
        updates.append([ahead, here, latents, older])
    return np.array(updates)


def _unipc_step(
    stops: Stops,
    i: int,
    steps: Vector,
    z: Row,
    latents: Row,
    before: Row,
    ratio: float | None,
    reached: Row | None,
) -> Row:
    """Return the latents that step `i` reaches from `z`.

    Args:
        stops: The stops of the sampler.
        i: Index of the step.
        steps: Length of each step in λ.
        z: Noisy latents at the start of the step.
        latents: ẑ_0 at the start of the step.
        before: ẑ_0 at the previous stop.
        ratio: Position of the previous stop, in units of this step. None means first
            order.
        reached: ẑ_0 at the end of the step, to correct. None means to predict.
    """
    h = -steps[i]
    shrink = np.expm1(h)
    ahead = stops.next_sigma[i] / stops.sigma[i] * z
    ahead = ahead - stops.next_alpha[i] * shrink * latents
    slopes, places = [], []
    if ratio is not None:
        slopes.append((before - latents) / ratio)
        places.append(ratio)
    if reached is not None:
        slopes.append(reached - latents)
        places.append(1.0)
    if not slopes:
        return ahead
    if len(slopes) == 1:
        weights = np.array([0.5])
    else:
        phi_2 = shrink / h - 1
        phi_3 = phi_2 / h - 0.5
        moments = np.array([phi_2, 2 * phi_3]) / shrink
        weights = np.linalg.solve(np.vander(places, increasing=True).T, moments)
    return ahead - stops.next_alpha[i] * shrink * (weights @ np.stack(slopes))


def _betas(stops: Stops) -> Vector:
    """Return β of eq. 2: the fraction of the signal's power that each step restores."""
    return 1 - (stops.alpha / stops.next_alpha) ** 2


def _log_steps(stops: Stops) -> Vector:
    """Return each step's length in λ = log α/σ; infinite if it ends without noise."""
    with np.errstate(divide="ignore"):
        ahead = np.log(stops.next_alpha) - np.log(stops.next_sigma)
    return ahead - (np.log(stops.alpha) - np.log(stops.sigma))


def unit_rows(memory: int) -> np.ndarray:
    """Return unit rows that select the memory, the output, ẑ_0 and fresh noise."""
    return np.eye(memory + 3)
