"""What splash attention costs beyond what the compiler counts of it.

A compiler knows of a kernel only what the kernel declares. Ours declares everything
(`attention_kernel.kernel_cost`). Splash attention declares nothing: the TPU's compiler
counts no FLOPs, and each operand and result once. The missing part is added, from the
calls that a traced program makes.

**FLOPs.** A product of q queries, l keys and d channels a head is 2 q l d. The forward
kernel (``fwd``) has two: S = Q Kᵀ and P V. Both backward kernels compute S again:
``dkv`` has S, dP = dO Vᵀ, dV = Pᵀ dO and dK = dSᵀ Q; ``dq`` has S, dP and dQ = dS K.
The softmax, about 2% of them, is not counted.

**Bytes.** Let Q, K, V, O be the sizes of a head's operands, and n_q = q / block_q,
n_k = l / block_k the blocks. An operand whose block stays the same from one step of the
grid to the next is not read again. With the grid (heads, n_q, n_k) of ``fwd`` and
``dq``, keys and values are read n_q times if n_k > 1, else once:

    fwd: (n_q − 1) (K + V) more,   dq: (n_q − 1) (K + V) more,   if n_k > 1       (1)

With the grid (n_k, heads, n_q) of ``dkv``, what belongs to queries (Q, dO, and in
float32 log Σ e^S and Σ O dO, each of them 8 times) is read once for each block of keys:

    dkv: (n_k − 1) (Q + dO + 64 q) more                                            (2)

`attention_splash.blocks` holds all keys of a head up to 1 MiB: at 4096 tokens of up to
128 channels in bfloat16, n_k is 1, and nothing is read again.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from medjax.models.attention_splash import blocks, padded

PHASES = ("fwd", "dkv", "dq")
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """One kernel in a program, and how often one run of the program calls it.

    Attributes:
        phase: One of `PHASES`.
        batch: Examples on one device.
        heads: Heads on one device.
        q_len: Queries, padded.
        kv_len: Keys, padded.
        head_dim: Channels of a head.
        itemsize: Bytes of an operand's number.
        times: Calls.
    """

    phase: str
    batch: int
    heads: int
    q_len: int
    kv_len: int
    head_dim: int
    itemsize: int
    times: int = 1

    @property
    def cost(self) -> tuple[int, int]:
        """FLOPs of all calls, and bytes that they read again (eqs. 1 and 2)."""
        queries, queries_dq, keys = blocks(
            self.q_len, self.kv_len, self.head_dim, self.itemsize
        )
        products = _PRODUCTS[self.phase]
        flops = products * 2 * self.q_len * self.kv_len * self.head_dim
        row = self.head_dim * self.itemsize
        key_blocks = self.kv_len // keys
        if self.phase == "dkv":
            again = (key_blocks - 1) * self.q_len * (2 * row + 64)
        elif key_blocks > 1:
            block = queries if self.phase == "fwd" else queries_dq
            again = (self.q_len // block - 1) * 2 * self.kv_len * row
        else:
            again = 0
        heads = self.times * self.batch * self.heads
        return heads * flops, heads * again


def kernel_cost(
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    head_dim: int,
    dtype: Any,
    backward: bool,
) -> tuple[int, int]:
    """Return the FLOPs, and the bytes read again, of one splash attention.

    Args:
        batch: Examples.
        heads: Heads.
        q_len: Queries.
        kv_len: Keys.
        head_dim: Channels of a head.
        dtype: Of the operands.
        backward: Whether of the gradient, or of the forward pass.
    """
    size = jnp.dtype(dtype).itemsize
    shape = (batch, heads, padded(q_len), padded(kv_len), head_dim, size)
    phases = PHASES[1:] if backward else PHASES[:1]
    costs = [KernelCall(phase, *shape).cost for phase in phases]
    return sum(flops for flops, _ in costs), sum(again for _, again in costs)


def kernel_calls(jaxpr: Any) -> list[KernelCall]:
    """Return the splash attentions in a traced program, those of one device.

    A scan's body counts as often as it runs, a while loop's once.

    Args:
        jaxpr: As `jax.jit(…).trace(…).jaxpr` or `jax.make_jaxpr` give it.
    """
    return list(_calls(getattr(jaxpr, "jaxpr", jaxpr), 1))


def extra_cost(jaxpr: Any) -> tuple[int, int]:
    """Return FLOPs and bytes to add to the TPU compiler's count for a program.

    Args:
        jaxpr: The traced program; the sums are those of one device.
    """
    costs = [call.cost for call in kernel_calls(jaxpr)]
    return sum(flops for flops, _ in costs), sum(again for _, again in costs)


def _calls(jaxpr: Any, times: int) -> Iterator[KernelCall]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            if call := kernel_call(eqn, times):
                yield call
            continue
        scan = eqn.primitive.name == "scan"
        inside = times * eqn.params["length"] if scan else times
        for inner in jaxprs_in_params(eqn.params):
            yield from _calls(inner, inside)


def kernel_call(eqn: Any, times: int = 1) -> KernelCall | None:
    """Return what a Pallas call is, if it is splash attention.

    Args:
        eqn: The equation ``pallas_call`` of a traced program.
        times: How often the program runs it.
    """
    name = str(eqn.params["name"])
    phase = name.removeprefix("splash_mha_").partition("_")[0]
    if not name.startswith("splash_mha_") or phase not in PHASES:
        return None
    operands = [var.aval for var in eqn.invars]
    # Queries and keys are the first that are no integers; one example has no axis.
    query, key, *_ = (x for x in operands if jnp.issubdtype(x.dtype, jnp.floating))
    (heads, width, q_len), batch = query.shape[-3:], math.prod(query.shape[:-3])
    size = query.dtype.itemsize
    return KernelCall(phase, batch, heads, q_len, key.shape[-1], width, size, times)
