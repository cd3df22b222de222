"""Products with kernels, and attention, in the form that is fast on each platform.

Except on the CPU, these are XLA's own operations. On the CPU (jax 0.10), three of them
are several times slower than another form of the same arithmetic:

* A bfloat16 product with a bfloat16 result first converts both sides to float32. With a
  float32 result, it uses the processor's bfloat16 instructions. (jax derives the
  gradient of attention, and its products are in float32.)
* The time of a 3×3 convolution of few small images goes to reading its kernel, if the
  kernel is larger than they are, and the gradient transposes it. With P(x), the 3×3
  patches of x as rows,

      y = P(x) K,    ∂x = Pᵀ(∂y Kᵀ),    ∂K = P(x)ᵀ ∂y                            (1)

  reads the kernel once, in its own layout. If the patches would be larger than the
  kernel, bfloat16 sums the nine taps of the kernel instead; in float32, XLA is faster.
* Attention writes the scores of all queries and keys, more than caches hold, and keeps
  the softmax for its gradient. If there are many, some queries at a time attend, and
  once more for the gradient. The sum divides the weighted values, not the weights:

      softmax(S) V = e^S V / Σ e^S                                                (2)

`bench/step.py` measures the effect.
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
from medjax.models.autodiff import bilinear

# Smaller kernels gain nothing, and take longer to compile.
_LEAST_KERNEL = 3 * 3 * 64 * 64
# Pixels up to which an image's taps are summed, in bfloat16.
_MOST_FOR_TAPS = 64 * 64
# Queries at a time, at most and at least, and keys from which that is worth while.
_MOST_QUERIES, _LEAST_QUERIES, _LEAST_KEYS = 256, 64, 512

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


def attention_on_cpu(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b l heads d"],
    value: Float[Array, "b l heads d"],
) -> Float[Array, "b n heads d"]:
    """Attend from some queries at a time, where there are many (eq. 2)."""
    count, width = query.shape[1], query.shape[-1]
    at_once = max(n for n in range(1, _MOST_QUERIES + 1) if count % n == 0)
    if key.shape[1] < _LEAST_KEYS or at_once < _LEAST_QUERIES:
        return jax.nn.dot_product_attention(query, key, value)
    # As the products read them; in float32, as their gradients are summed.
    query, value = (jnp.swapaxes(x, 1, 2) for x in (query, value))
    key = jnp.transpose(key, (0, 2, 3, 1))
    whole = key.astype(jnp.float32), value.astype(jnp.float32)

    @jax.checkpoint
    def attend(query: Float[Array, "b heads n d"]) -> Float[Array, "b heads n d"]:
        key, value = (x.astype(query.dtype) for x in whole)
        scores = jnp.matmul(query, key, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(width)
        # Of no account to the result, and so without a gradient.
        largest = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights.astype(value.dtype)
        attended = jnp.matmul(weights, value, preferred_element_type=jnp.float32)
        return (attended / total).astype(query.dtype)

    parts = query.reshape(*query.shape[:2], -1, at_once, width)
    attended = lax.map(attend, jnp.moveaxis(parts, 2, 0))
    attended = jnp.moveaxis(attended, 0, 2).reshape(query.shape)
    return jnp.swapaxes(attended, 1, 2)


def _contract(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Sum over one axis of each, with a float32 result."""
    axes = ((a_axis % a.ndim,), (b_axis % b.ndim,))
    return lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _by_platform(
    cpu: Callable[..., Any], native: Callable[..., Any], *operands: Array
) -> Any:
    return lax.platform_dependent(*operands, cpu=cpu, default=native)


def _gradient(
    function: Callable[[Array, Array], Array], operand: int
) -> Callable[[Array, Array, Array], Array]:
    """Return ``(x, kernel, gradient) -> gradient of one`` as XLA would compute it."""
    return lambda *given: jax.vjp(function, *given[:-1])[1](given[-1])[operand]


def _dot_forward(x: Array, kernel: Array) -> Array:
    """Sum over the last axis of `x` and the first of the kernel."""

    def cpu(x: Array, kernel: Array) -> Array:
        return _contract(x, kernel, -1, 0).astype(x.dtype)

    return _by_platform(cpu, jnp.matmul, x, kernel)


def _dot_dx(x: Array, kernel: Array, gradient: Array) -> Array:
    def cpu(x: Array, kernel: Array, gradient: Array) -> Array:
        return _contract(gradient, kernel, -1, -1).astype(x.dtype)

    return _by_platform(cpu, _gradient(jnp.matmul, 0), x, kernel, gradient)


def _dot_dkernel(x: Array, kernel: Array, gradient: Array) -> Array:
    def cpu(x: Array, kernel: Array, gradient: Array) -> Array:
        rows, outs = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, kernel.shape[-1])
        return _contract(rows, outs, 0, 0).astype(kernel.dtype)

    return _by_platform(cpu, _gradient(jnp.matmul, 1), x, kernel, gradient)


_dot = bilinear(_dot_forward, (_dot_dx, _dot_dkernel))


_native_conv = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding=((1, 1), (1, 1)),
    dimension_numbers=_NHWC,
)


def _conv3x3_forward(x: Array, kernel: Array) -> Array:
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


def _conv3x3_dx(x: Array, kernel: Array, gradient: Array) -> Array:
    native = _gradient(_native_conv, 0)

    def cpu(x: Array, kernel: Array, gradient: Array) -> Array:
        if _takes_patches(x, kernel):
            flat = kernel.reshape(-1, kernel.shape[-1])
            dx = _add_taps(_contract(gradient, flat, -1, -1))
        elif _takes_taps(x):
            # Backwards a tap looks the other way.
            taps = zip(reversed(_taps(gradient)), _kernel_taps(kernel), strict=True)
            dx = _sum(_contract(tap, k, -1, -1) for tap, k in taps)
        else:
            dx = native(x, kernel, gradient)
        return dx.astype(x.dtype)

    return _by_platform(cpu, native, x, kernel, gradient)


def _conv3x3_dkernel(x: Array, kernel: Array, gradient: Array) -> Array:
    native = _gradient(_native_conv, 1)

    def cpu(x: Array, kernel: Array, gradient: Array) -> Array:
        if not _takes_patches(x, kernel):
            return native(x, kernel, gradient)
        rows = [tap.reshape(-1, x.shape[-1]).T for tap in _taps(x)]
        outs = gradient.reshape(-1, gradient.shape[-1])
        dkernel = _contract(jnp.concatenate(rows), outs, 1, 0)
        return dkernel.reshape(kernel.shape).astype(kernel.dtype)

    return _by_platform(cpu, native, x, kernel, gradient)


_conv3x3 = bilinear(_conv3x3_forward, (_conv3x3_dx, _conv3x3_dkernel))


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
