"""Apply classifier-free guidance: move away from the output without the caption.

    ε̂ = ε_∅ + w (ε_c − ε_∅)                                                         (1)
    ε̂' = φ ε̂ std(ε_c) / std(ε̂) + (1 − φ) ε̂                                         (2)

Sources: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, eq. 6, where w = 1
means no guidance (1); Lin et al., 2024, eq. 15 and 16 (2).
"""

from jaxtyping import Float

from medjax.arrays import Array


def guide(
    without: Float[Array, "b ..."],
    given: Float[Array, "b ..."],
    scale: float,
    rescale: float = 0.0,
) -> Float[Array, "b ..."]:
    """Return the guided output.

    Args:
        without: The output for the negative or the empty caption.
        given: The output for the caption.
        scale: w of eq. 1; 1 means no guidance.
        rescale: φ of eq. 2, in [0, 1]; 1 fully restores the contrast of `given`.
    """
    guided = without + scale * (given - without)
    if not rescale:
        return guided
    axes = tuple(range(1, given.ndim))
    # torch computes this standard deviation with N - 1, not N.
    contrast = given.std(axes, ddof=1, keepdims=True)
    contrast = contrast / guided.std(axes, ddof=1, keepdims=True)
    return rescale * guided * contrast + (1 - rescale) * guided
