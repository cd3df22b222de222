"""Products with kernels, dense and convolutional, in the form each platform is fast at.

Everywhere but on the CPU these are XLA's own operations. There (jax 0.10) two of them
are several times slower than the same arithmetic written otherwise:

* A bfloat16 product with a bfloat16 result converts both sides to float32 first; with a
  float32 result it takes the processor's bfloat16 instructions.
* A 3×3 convolution of few small images is bound by its kernel, where that is larger
  than they are, and the gradient transposes it. With P(x), the 3×3 patches of x as
  rows,

      y = P(x) K,    ∂x = Pᵀ(∂y Kᵀ),    ∂K = P(x)ᵀ ∂y                            (1)

  reads the kernel once, as it lies. Where the patches would be the larger part, the
  nine taps of the kernel are summed instead in bfloat16; in float32 XLA is faster.

`bench/step.py` measures what this is worth.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from medjax.arrays import Array

# Smaller kernels gain nothing, and take longer to compile.
_LEAST_KERNEL = 3 * 3 * 64 * 64
# Pixels up to which an image's taps are summed, in bfloat16.
_MOST_FOR_TAPS = 64 * 64

_NHWC = ("NHWC", "HWIO", "NHWC")


def dot_general(
    x: Float[Array, "*rows i"],
    kernel: Float[Array, "i o"],
    dimension_numbers: Any,
    **options: Any,
) -> Float[Array, "*rows o"]:
    """Stand in for `lax.dot_general` in `flax.linen.Dense`, the only form there is."""
    del dimension_numbers, options
    return _dot(x, kernel) if x.dtype == jnp.bfloat16 else x @ kernel


def conv_general_dilated(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b H W o"]:
    """Stand in for `lax.conv_general_dilated` in `flax.linen.Conv`, in two dimensions.

    Dilation and groups are not supported.
    """
    del options
    form = kernel.shape[:2], tuple(window_strides), tuple(map(tuple, padding))
    if form == ((1, 1), (1, 1), ((0, 0), (0, 0))):
        return dot_general(x, kernel[0, 0], None)
    if form == ((3, 3), (1, 1), ((1, 1), (1, 1))) and kernel.size >= _LEAST_KERNEL:
        return _conv3x3(x, kernel)
    return lax.conv_general_dilated(
        x, kernel, window_strides, padding, dimension_numbers=_NHWC
    )


def _contract(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Sum over one axis of each, with a float32 result."""
    axes = ((a_axis % a.ndim,), (b_axis % b.ndim,))
    return lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _by_platform(
    cpu: Callable[..., Any], native: Callable[..., Any], *operands: Array
) -> Any:
    return lax.platform_dependent(*operands, cpu=cpu, default=native)


def _gradients(function: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    """Return ``(x, kernel, gradient) -> (∂x, ∂kernel)`` as XLA would compute them."""
    return lambda x, kernel, gradient: jax.vjp(function, x, kernel)[1](gradient)


@jax.custom_vjp
def _dot(x: Array, kernel: Array) -> Array:
    """Sum over the last axis of `x` and the first of the kernel."""

    def cpu(x: Array, kernel: Array) -> Array:
        return _contract(x, kernel, -1, 0).astype(x.dtype)

    return _by_platform(cpu, jnp.matmul, x, kernel)


def _dot_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _dot(x, kernel), (x, kernel)


def _dot_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    def cpu(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        rows, outs = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, kernel.shape[-1])
        return (
            _contract(gradient, kernel, -1, -1).astype(x.dtype),
            _contract(rows, outs, 0, 0).astype(kernel.dtype),
        )

    return _by_platform(cpu, _gradients(jnp.matmul), *saved, gradient)


_dot.defvjp(_dot_forward, _dot_backward)


_native_conv = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding=((1, 1), (1, 1)),
    dimension_numbers=_NHWC,
)


@jax.custom_vjp
def _conv3x3(x: Array, kernel: Array) -> Array:
    """Convolve by a 3×3 kernel with stride 1, padded by 1 (eq. 1)."""

    def cpu(x: Array, kernel: Array) -> Array:
        if _takes_patches(x, kernel):
            patches = jnp.concatenate(_taps(x), axis=-1)
            y = _contract(patches, kernel.reshape(-1, kernel.shape[-1]), -1, 0)
        elif _takes_taps(x):
            taps = zip(_taps(x), _kernel_taps(kernel), strict=True)
            y = _sum(_contract(tap, k, -1, 0) for tap, k in taps)
        else:
            y = _native_conv(x, kernel)
        return y.astype(x.dtype)

    return _by_platform(cpu, _native_conv, x, kernel)


def _conv3x3_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv3x3(x, kernel), (x, kernel)


def _conv3x3_backward(
    saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    def cpu(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        native_dx, dkernel = _gradients(_native_conv)(x, kernel, gradient)
        if _takes_patches(x, kernel):
            rows = [tap.reshape(-1, x.shape[-1]).T for tap in _taps(x)]
            outs = gradient.reshape(-1, gradient.shape[-1])
            dkernel = _contract(jnp.concatenate(rows), outs, 1, 0)
            flat = kernel.reshape(-1, kernel.shape[-1])
            dx = _add_taps(_contract(gradient, flat, -1, -1))
        elif _takes_taps(x):
            # Backwards a tap looks the other way.
            taps = zip(reversed(_taps(gradient)), _kernel_taps(kernel), strict=True)
            dx = _sum(_contract(tap, k, -1, -1) for tap, k in taps)
        else:
            dx = native_dx
        return dx.astype(x.dtype), dkernel.reshape(kernel.shape).astype(kernel.dtype)

    return _by_platform(cpu, _gradients(_native_conv), *saved, gradient)


_conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def _sum(arrays: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, arrays)


def _takes_patches(x: Array, kernel: Array) -> bool:
    """Tell whether the patches, rows × 9 i, are no larger than the kernel, 9 i × o."""
    return math.prod(x.shape[:3]) <= kernel.shape[-1]


def _takes_taps(x: Array) -> bool:
    return x.dtype == jnp.bfloat16 and x.shape[1] * x.shape[2] <= _MOST_FOR_TAPS


def _taps(x: Float[Array, "b h w c"]) -> list[Float[Array, "b h w c"]]:
    """Return x moved by each of the nine places of the kernel, zeros moving in."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [
        padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
    ]


def _kernel_taps(kernel: Float[Array, "3 3 i o"]) -> list[Float[Array, "i o"]]:
    return [kernel[i, j] for i in range(3) for j in range(3)]


def _add_taps(patches: Float[Array, "b h w _"]) -> Float[Array, "b h w c"]:
    """Add each pixel's patch to where it was taken from: `_taps`, transposed."""
    taps = jnp.split(patches, 9, axis=-1)
    places = [(i, j) for i in range(3) for j in range(3)]
    padded = _sum(
        jnp.pad(tap, ((0, 0), (i, 2 - i), (j, 2 - j), (0, 0)))
        for tap, (i, j) in zip(taps, places, strict=True)
    )
    return padded[:, 1:-1, 1:-1]
