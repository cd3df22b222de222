"""Compute the Fréchet distance of two sets of images, as Gaussians of their features.

    d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)                                  (1)

It is 0 for equal sets. It is biased upwards, more so with fewer images. So compare only
distances of equal numbers of images, measured against the same real images.

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local
Nash Equilibrium", 2017, eq. 6.
"""

import numpy as np
from jaxtyping import Float

from medjax.errors import UserError


def frechet_distance(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"]
) -> float:
    """Return d² of eq. 1.

    Args:
        real: Features of at least two real images.
        generated: Features of at least two generated images.

    Raises:
        UserError: If a set has fewer than two images, or a feature is not finite.
    """
    for name, features in {"real": real, "generated": generated}.items():
        if len(features) < 2:
            raise UserError(f"{len(features)} {name} images, expected at least 2")
        if not np.isfinite(features).all():
            raise UserError(f"a feature of {name} images is not a finite number")
    centred = [
        x.astype(np.float64) - x.mean(0, dtype=np.float64) for x in (real, generated)
    ]
    apart = real.mean(0, dtype=np.float64) - generated.mean(0, dtype=np.float64)
    # Because Σ = AᵀA, tr (Σ₁ Σ₂)^½ is the sum of the singular values of A₁ A₂ᵀ. This is
    # exact and avoids the root of a singular matrix.
    first, second = (x / np.sqrt(len(x) - 1) for x in centred)
    overlap = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    spread = np.square(first).sum() + np.square(second).sum()
    return float(apart @ apart + spread - 2 * overlap)
