"""What fused attention costs is what a count by hand gives."""

import functools

import jax
import jax.numpy as jnp
import pytest

from medjax.models.attention_cost import extra_cost, kernel_calls, kernel_cost
from medjax.models.attention_forms import attend
from medjax.models.attention_splash import splash


def test_one_attention_by_hand():
    # 8 × 8 heads; a product of 4096 × 4096 × 40 is 1.342 GFLOP.
    given = (8, 8, 4096, 4096, 40, jnp.bfloat16)
    product = 2 * 4096 * 4096 * 40
    assert kernel_cost(*given, False) == (64 * 2 * product, 0)
    assert kernel_cost(*given, True) == (64 * 7 * product, 0)


def test_what_is_read_again_by_hand():
    # In float32 a head's 4096 keys are 2 MiB on the chip: two blocks of 2048.
    given = (1, 1, 4096, 4096, 40, jnp.float32)
    row = 40 * 4
    # Eight blocks of 512 queries read keys and values once each.
    assert kernel_cost(*given, False)[1] == 7 * 2 * 4096 * row
    # Sixteen blocks of 256 queries do; the queries' side is read twice.
    assert kernel_cost(*given, True)[1] == 15 * 2 * 4096 * row + 4096 * (2 * row + 64)


def test_padding_is_computed():
    found = kernel_cost(1, 1, 300, 300, 40, jnp.bfloat16, False)
    assert found == kernel_cost(1, 1, 384, 384, 40, jnp.bfloat16, False)


@pytest.mark.parametrize("remat", [False, True])
def test_the_calls_of_a_program_are_counted(remat):
    x = jax.ShapeDtypeStruct((2, 300, 3, 8), jnp.bfloat16)
    attention = jax.checkpoint(splash) if remat else splash

    def loss(x):
        def step(x, _):
            return attention(x, x, x), None

        return jax.lax.scan(step, x, length=5)[0].astype(jnp.float32).sum()

    calls = kernel_calls(jax.jit(jax.grad(loss)).trace(x).jaxpr)
    found = [(call.phase, call.batch, call.heads, call.times) for call in calls]
    forward = [("fwd", 2, 3, 5)] * (1 + remat)
    assert sorted(found) == sorted([*forward, ("dkv", 2, 3, 5), ("dq", 2, 3, 5)])
    cost = functools.partial(kernel_cost, 2, 3, 300, 300, 8, jnp.bfloat16)
    expected = (1 + remat) * 5 * cost(False)[0] + 5 * cost(True)[0]
    assert extra_cost(jax.jit(jax.grad(loss)).trace(x).jaxpr) == (expected, 0)


@pytest.mark.parametrize("length", [64, 256])
def test_products_and_our_kernel_declare_what_they_cost(length):
    x = jax.ShapeDtypeStruct((2, length, 3, 8), jnp.bfloat16)
    assert kernel_calls(jax.make_jaxpr(attend)(x, x, x)) == []
