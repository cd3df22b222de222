"""Convolutions on images whose 2 × 2 pixels are folded into channels.

A TPU stores channels in rows of 128 numbers. So an image of 512² with 16 channels takes
eight times its size there. Folded to 64 channels, it takes twice its size. The kernel
becomes four times as large, mostly of zeros, which a TPU multiplies too. With
i = 2 I + p for rows and columns (I is a folded row, p its phase), a convolution

    y[i] = Σ_k x[s i + k − 1] K[k],   k = 0, 1, 2,   s is the stride             (1)

is a convolution of folded images, whose kernel has each K[k] in the places that (1)
demands, and zeros elsewhere. For s = 1 the result is folded, too. For s = 2 its pixel i
reads the folded pixels i − 1 and i, so the result is not folded.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from medjax.arrays import Array


def fold(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c4"]:
    """Move 2 × 2 pixels into channels: phase of the row, of the column, channel.

    Args:
        x: Images with even height and width.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def folded_conv(
    x: Float[Array, "b h w c4"],
    kernel: Float[Array, "3 3 c d"],
    bias: Float[Array, "d"],
) -> Float[Array, "b h w d4"]:
    """Convolve a folded image with stride 1 and padding 1; the result is folded.

    Args:
        x: Folded image.
        kernel: Kernel for the image that is not folded.
        bias: Bias of the convolution.
    """
    places = _places(1)
    # Rows and columns of the kernel: folded offset, phase read and phase written.
    large = jnp.einsum(
        "klio,kdpq,lemn->depmiqno",
        *(kernel, places.astype(kernel.dtype), places.astype(kernel.dtype)),
    )
    size, _, _, _, channels, _, _, features = large.shape
    large = large.reshape(size, size, 4 * channels, 4 * features)
    return _conv(x, large, ((1, 1), (1, 1))) + jnp.tile(bias, 4).reshape(1, 1, 1, -1)


def unfolding_conv(
    x: Float[Array, "b h w c4"],
    kernel: Float[Array, "3 3 c d"],
    bias: Float[Array, "d"],
) -> Float[Array, "b h w d"]:
    """Convolve a folded image with stride 2 and padding 1; the result is not folded.

    Args:
        x: Folded image.
        kernel: Kernel for the image that is not folded.
        bias: Bias of the convolution.
    """
    places = _places(2)[..., 0]
    large = jnp.einsum(
        "klio,kdp,lem->depmio",
        *(kernel, places.astype(kernel.dtype), places.astype(kernel.dtype)),
    )
    size, _, _, _, channels, features = large.shape
    large = large.reshape(size, size, 4 * channels, features)
    return _conv(x, large, ((1, 0), (1, 0))) + bias.reshape(1, 1, 1, -1)


@functools.cache
def _places(stride: int) -> np.ndarray:
    """Return 1 where k of (1) reads offset d and phase p for the result's phase q.

    Returns:
        Array of axes k, d (from −1), p, q; one q for a stride of 2.
    """
    offsets, phases = (3, 2) if stride == 1 else (2, 1)
    places = np.zeros((3, offsets, 2, phases), np.float32)
    for k in range(3):
        for q in range(phases):
            block, phase = divmod(q + k - 1, 2)
            places[k, block + 1, phase, q] = 1
    return places


def _conv(
    x: Array, kernel: Array, padding: tuple[tuple[int, int], tuple[int, int]]
) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=layout
    )
