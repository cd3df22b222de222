"""Fused attention on TPUs for keys that fit on the chip: one kernel each way.

jax's splash attention serves any length, at a price: it keeps log Σ e^S as 128 numbers
a query, and its gradient takes two kernels, and each computes S again. An image has few
enough keys (4096 at 512²) that all those of a head stay on the chip while its queries
pass by. So only Q, K, V, O and their gradients are read or written, each once, and the
gradient needs only Q, K, V. With S = K Qᵀ / √d, keys by queries,

    P = softmax(S),   O = Pᵀ V                                                     (1)
    dV = P dO,   dP = V dOᵀ,   dS = P ⊙ (dP − Σ_keys P ⊙ dP)                       (2)
    dQ = dSᵀ K / √d,   dK = dS Q / √d                                              (3)

Arrays have their channels before their tokens, because a last axis of 40 channels would
be padded to 128 in memory. Lengths are padded to multiples of 128, and the scores of
padded keys are −∞. Products take operands of the arrays' dtype and give float32, in
which the softmax is.

Source: Dao et al., "FlashAttention", 2022, section 3 and appendix B (2, 3).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from medjax.arrays import Array
from medjax.models.attention_splash import KEPT, LANES, padded
from medjax.models.autodiff import with_forward_mode

# Scores that are held at a time, 2 MiB, and bytes of a head's keys up to which it fits.
_MOST_SCORES, _MOST_QUERIES, _MOST_BYTES = 2**19, 1024, 3 * 2**19
# Bytes of the memory on the chip: v5e and v6e have 128 MiB, and v5p has 64.
_MEMORY = 48 * 2**20


def fits(length: int, width: int, itemsize: int) -> bool:
    """Tell whether a head's keys stay on the chip.

    Args:
        length: Number of keys.
        width: Channels of a head.
        itemsize: Bytes of a number.
    """
    length = padded(length)
    small = length * LANES <= _MOST_SCORES
    return small and length * width * itemsize <= _MOST_BYTES


def fused(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b l heads d"],
    value: Float[Array, "b l heads d"],
    *,
    interpret: bool = False,
) -> Float[Array, "b n heads d"]:
    """Return ``softmax(Q Kᵀ / √d) V`` of each head, on one device.

    Args:
        query: Queries; any n.
        key: Keys; `fits` limits l.
        value: Values, one per key.
        interpret: Whether to emulate the kernel on the CPU, for tests.
    """
    n, length = query.shape[1], key.shape[1]
    both = with_forward_mode(
        _differentiable(length, interpret), functools.partial(_plain, length)
    )
    attended = both(*(_channels_first(x) for x in (query, key, value)))
    attended = checkpoint_name(attended, KEPT)
    return jnp.transpose(attended[..., :n], (0, 3, 1, 2))


def _channels_first(x: Float[Array, "b n heads d"]) -> Float[Array, "b heads d m"]:
    x = jnp.transpose(x, (0, 2, 3, 1))
    rest = padded(x.shape[-1]) - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, rest))) if rest else x


def _plain(length: int, query: Array, key: Array, value: Array) -> Array:
    """Compute the same by products, for forward mode."""
    scores = jnp.einsum("bhdl,bhdn->bhln", key, query).astype(jnp.float32)
    scores = scores / math.sqrt(query.shape[2])
    scores = jnp.where(jnp.arange(key.shape[-1])[:, None] < length, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=2).astype(value.dtype)
    return jnp.einsum("bhdl,bhln->bhdn", value, weights)


def _differentiable(length: int, interpret: bool) -> Callable[..., Array]:
    """Return attention to the first `length` keys, and its gradient, as kernels."""

    @jax.custom_vjp
    def attend(query: Array, key: Array, value: Array) -> Array:
        (attended,) = _call(_forward, length, interpret, query, key, value)
        return attended

    def forward(*operands: Array) -> tuple[Array, tuple[Array, ...]]:
        return attend(*operands), operands

    def backward(operands: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
        return tuple(_call(_backward, length, interpret, *operands, gradient))

    attend.defvjp(forward, backward)
    return attend


def _call(
    kernel: Callable[..., None],
    length: int,
    interpret: bool,
    query: Array,
    key: Array,
    value: Array,
    *gradient: Array,
) -> Sequence[Array]:
    """Run a kernel over examples, heads and blocks of queries."""
    # Imported here: only long sequences need it, and it takes a second.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, heads, width, n = query.shape
    size = key.shape[-1]
    block = block_of_queries(n, size)

    some = pl.BlockSpec((None, None, width, block), lambda b, h, i: (b, h, 0, i))
    whole = pl.BlockSpec((None, None, width, size), lambda b, h, i: (b, h, 0, 0))
    operands = (query, key, value, *gradient)
    results = (query, key, value) if gradient else (query,)
    turned = pltpu.VMEM((size, width), key.dtype)
    summed = pltpu.VMEM((width, size), jnp.float32)
    scratch = [turned, turned, summed, summed] if gradient else [turned]
    called = pl.pallas_call(
        functools.partial(kernel, length),
        grid=(batch, heads, n // block),
        in_specs=[some, whole, whole, *(some for _ in gradient)],
        out_specs=[some, *(whole for _ in results[1:])],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_MEMORY,
        ),
        cost_estimate=pl.CostEstimate(
            *kernel_cost(query.shape, key.shape, key.dtype.itemsize, bool(gradient))
        ),
        name="attention_backward" if gradient else "attention_forward",
        interpret=interpret,
    )
    return called(*operands)


def block_of_queries(n: int, length: int) -> int:
    """Return how many queries, padded, meet all keys at a time."""
    most = min(n, _MOST_QUERIES, max(_MOST_SCORES // length, LANES))
    return max(size for size in range(LANES, most + 1, LANES) if n % size == 0)


def kernel_cost(
    query: Sequence[int], key: Sequence[int], itemsize: int, backward: bool
) -> tuple[int, int, int]:
    """Return a call's FLOPs, exponentials, and bytes read and written.

    A product of n queries, l keys and d channels is 2 n l d FLOPs. Forward there are
    two (S and O), backward five (S, dV, dP, dQ and dK). All exponentials are taken once
    a call. A block that stays the same from one step to the next is not read again, so
    the keys' side (K, V, and backward dK, dV) moves once, as the queries' side does
    (Q, O, and backward Q, dO, dQ).

    Args:
        query: Shape of the queries, ``b heads d n``.
        key: Shape of the keys, ``b heads d l``.
        itemsize: Bytes of a number.
        backward: Whether the call is that of the gradient.
    """
    batch, heads, width, n = query
    scores = batch * heads * n * key[-1]
    products, sides = (5, (3, 4)) if backward else (2, (2, 2))
    moved = sides[0] * math.prod(query) + sides[1] * math.prod(key)
    return products * 2 * scores * width, scores, moved * itemsize


def _weights(length: int, turned: Array, query: Array) -> Float[Array, "l n"]:
    """Return the softmax over keys of K Qᵀ / √d, from ``l d`` and ``d n``."""
    scores = _product(turned, query) * (1 / math.sqrt(query.shape[0]))
    if length < scores.shape[0]:
        place = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        scores = jnp.where(place < length, scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=0, keepdims=True))
    return weights / weights.sum(axis=0, keepdims=True)


def _product(a: Float[Array, "i j"], b: Float[Array, "j k"]) -> Float[Array, "i k"]:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _product_of_turned(
    a: Float[Array, "i k"], b: Float[Array, "j k"]
) -> Float[Array, "i j"]:
    over = (((1,), (1,)), ((), ()))
    return lax.dot_general(a, b, over, preferred_element_type=jnp.float32)


def _forward(
    length: int, query: Any, key: Any, value: Any, attended: Any, turned_key: Any
) -> None:
    """Compute eq. 1 for a block of queries, from references to memory on the chip."""
    from jax.experimental import pallas as pl

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        turned_key[...] = key[...].T

    weights = _weights(length, turned_key[...], query[...]).astype(value.dtype)
    attended[...] = _product(value[...], weights).astype(attended.dtype)


def _backward(
    length: int,
    query: Any,
    key: Any,
    value: Any,
    gradient: Any,
    query_gradient: Any,
    key_gradient: Any,
    value_gradient: Any,
    turned_key: Any,
    turned_value: Any,
    key_sum: Any,
    value_sum: Any,
) -> None:
    """Compute eqs. 2 and 3 for a block of queries, and sum the keys' gradients."""
    from jax.experimental import pallas as pl

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        turned_key[...] = key[...].T
        turned_value[...] = value[...].T
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    weights = _weights(length, turned_key[...], query[...])
    value_sum[...] += _product_of_turned(gradient[...], weights.astype(query.dtype))
    change = _product(turned_value[...], gradient[...])
    mean = (weights * change).sum(axis=0, keepdims=True)
    change = weights * (change - mean) * (1 / math.sqrt(query.shape[0]))
    change = change.astype(query.dtype)
    query_gradient[...] = _product(key[...], change).astype(query_gradient.dtype)
    key_sum[...] += _product_of_turned(query[...], change)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        key_gradient[...] = key_sum[...].astype(key_gradient.dtype)
        value_gradient[...] = value_sum[...].astype(value_gradient.dtype)
