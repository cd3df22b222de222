"""Fused attention on TPUs of any length: jax's splash attention.

Plain attention writes the scores of all queries and keys to memory; this kernel keeps a
block of them on the chip. It reads keys and values again for each block of queries,
unless a head's all fit on the chip (`attention_cost`).

The kernel wants lengths that are multiples of 128. Others are padded, and the keys of
the padding belong to another segment than all queries, so that nothing attends to them.

Source: Dao et al., "FlashAttention", 2022, algorithms 1 and 4;
`jax.experimental.pallas.ops.tpu.splash_attention`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from medjax.arrays import Array
from medjax.models.autodiff import with_forward_mode

# Of the last axis of a register, and so the unit of a block.
LANES = 128
# Of queries at a time: in the forward pass and for keys' gradients; for queries'.
_MOST_QUERIES, _MOST_QUERIES_DQ = 512, 256
# Of the keys whose scores are held at a time.
_MOST_SCORED = 512
# Bytes of a head's keys, in the layout on the chip, up to which all are held there.
_MOST_BYTES = 2**20

KEPT = "attention"
"""Name under which the results are kept for the gradient; see `models.remat`."""


def splash(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b l heads d"],
    value: Float[Array, "b l heads d"],
    *,
    interpret: bool = False,
) -> Float[Array, "b n heads d"]:
    """Return ``softmax(Q Kᵀ / √d) V`` of each head, computed in blocks.

    Args:
        query: Any number of them.
        key: Any number of them.
        value: One a key.
        interpret: Whether to run on the CPU, step by step, to test the numbers.
    """
    attention = functools.partial(_attend, interpret=interpret)
    both = with_forward_mode(attention, jax.nn.dot_product_attention)
    return both(query, key, value)


def padded(length: int) -> int:
    """Return the length with its padding."""
    return -(-length // LANES) * LANES


def blocks(
    q_len: int, kv_len: int, head_dim: int, itemsize: int
) -> tuple[int, int, int]:
    """Return block sizes: of queries, of queries in their gradient, and of keys.

    Args:
        q_len: Queries, padded.
        kv_len: Keys, padded.
        head_dim: Channels of a head.
        itemsize: Bytes of a number.
    """
    keys = _MOST_BYTES // (padded(head_dim) * itemsize)
    return (
        _divisor(q_len, _MOST_QUERIES),
        _divisor(q_len, _MOST_QUERIES_DQ),
        _divisor(kv_len, max(keys, LANES)),
    )


def _divisor(length: int, most: int) -> int:
    """Return the largest multiple of 128 up to `most` that divides a padded length."""
    sizes = range(LANES, min(most, length) + 1, LANES)
    return max(size for size in sizes if length % size == 0)


def _attend(query: Array, key: Array, value: Array, *, interpret: bool) -> Array:
    """Attend on one device."""
    (_, n, heads, width), length = query.shape, key.shape[1]
    kernel = _kernel(
        heads, padded(n), padded(length), width, query.dtype.itemsize, interpret
    )
    segments = _segments(n, length)
    # The scale goes into the queries, rounded as they are.
    query = query * jnp.asarray(1 / math.sqrt(width), query.dtype)
    query, key, value = (_heads_first(x) for x in (query, key, value))
    attend = functools.partial(kernel, segment_ids=segments)
    attended = jax.vmap(attend)(query, key, value)
    return jnp.swapaxes(attended[:, :, :n], 1, 2).astype(value.dtype)


def _heads_first(x: Float[Array, "b n heads d"]) -> Float[Array, "b heads m d"]:
    rest = padded(x.shape[1]) - x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, rest), (0, 0), (0, 0))) if rest else x
    return jnp.swapaxes(x, 1, 2)


def _segments(n: int, length: int) -> Any:
    """Return the segments of padded queries and keys; None without padded keys."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )

    if length == padded(length):
        return None
    return kernels.SegmentIds(
        q=jnp.zeros(padded(n), jnp.int32),
        kv=(jnp.arange(padded(length)) >= length).astype(jnp.int32),
    )


def _kernel(
    heads: int, q_len: int, kv_len: int, head_dim: int, itemsize: int, interpret: bool
) -> Callable[..., Array]:
    """Return attention from ``heads n d`` to ``heads l d``, padded."""
    # Imported here: only long sequences need it, and it takes a second.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    queries, queries_dq, keys = blocks(q_len, kv_len, head_dim, itemsize)
    scored = _divisor(keys, _MOST_SCORED)
    sizes = kernels.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=scored,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=scored,
        block_q_dq=queries_dq,
        block_kv_dq=keys,
        use_fused_bwd_kernel=False,
        # Heads of 40 channels in the last axis would be padded to 128 in memory.
        q_layout=kernels.QKVLayout.SEQ_MINOR,
        k_layout=kernels.QKVLayout.SEQ_MINOR,
        v_layout=kernels.QKVLayout.SEQ_MINOR,
    )
    mask = masks.MultiHeadMask([masks.FullMask((q_len, kv_len))] * heads)
    kernel: Callable[..., Array] = kernels.make_splash_mha(
        mask=mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )
    return kernel
