"""FLOPs of traced programs: by hand, and with loops."""

import jax
import jax.numpy as jnp
import pytest

from medjax.models.attention_forms import attend
from medjax.program_costs import count_flops, program_flops


def _traced(function, *shapes):
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).trace(*inputs)


def test_a_product_counts_two_for_each_multiplication():
    traced = _traced(jnp.matmul, (3, 5, 7), (7, 11))
    assert count_flops(traced, "cpu").flops == 2 * 3 * 5 * 7 * 11


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_counts_no_padding(stride):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    counted = count_flops(_traced(convolve, (2, 8, 6, 4), (3, 3, 4, 5)), "cpu").flops
    pairs = 1
    for side in (8, 6):
        starts = range(-1 if stride == 1 else 0, side - 1, stride)
        along = sum(0 <= start + k < side for start in starts for k in range(3))
        pairs *= along
    assert counted == 2 * 2 * 4 * 5 * pairs


def test_gradients_of_a_convolution_cost_as_much_as_itself():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = (2, 8, 8, 4), (3, 3, 4, 5)
    forward = count_flops(_traced(convolve, *shapes), "cpu").flops
    both = jax.grad(lambda x, k: jnp.square(convolve(x, k)).sum(), (0, 1))
    assert count_flops(_traced(both, *shapes), "cpu").flops == 3 * forward


def test_a_loop_counts_as_often_as_it_runs():
    def repeated(x, w):
        y, _ = jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=6)
        return jax.lax.fori_loop(0, 4, lambda i, c: c @ w, y)

    counted = count_flops(_traced(repeated, (8, 8), (8, 8)), "cpu")
    assert counted.flops == 10 * 2 * 8**3
    assert counted.once == 2 * 2 * 8**3
    assert counted.loops == 5


def test_recomputation_counts_and_branches_count_the_largest():
    def loss(x, w):
        return jax.checkpoint(lambda c: jnp.sin(jnp.sin(c @ w) @ w))(x).sum()

    both = jax.value_and_grad(loss, 1)
    plain = count_flops(_traced(both, (4, 8), (8, 8)), "cpu").flops
    # Two forward, at least one of them again, and two gradients of each.
    assert plain >= 7 * 2 * 4 * 8 * 8

    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert (
        count_flops(_traced(either, (4, 8), (8, 8)), "cpu").flops == 2 * 2 * 4 * 8 * 8
    )


def test_the_branch_of_the_platform_counts():
    x = jax.ShapeDtypeStruct((2, 512, 2, 8), jnp.bfloat16)
    traced = jax.jit(attend).trace(x, x, x)
    cpu, tpu = (count_flops(traced, platform) for platform in ("cpu", "tpu"))
    products = 2 * 2 * 2 * 2 * 512 * 512 * 8
    assert cpu.flops == products
    assert cpu.loops > 1  # Some queries at a time.
    assert tpu.flops == products  # As the kernel declares.
    assert tpu.loops == 1


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f])
def test_what_no_result_needs_does_not_count(jit):
    def gradient_of_one(x, w):
        return jax.vjp(jit(jnp.matmul), x, w)[1](jnp.ones((3, 7)))[0]

    def by_platform(x, w):
        return jax.lax.platform_dependent(x, w, default=gradient_of_one)

    for function in (gradient_of_one, by_platform):
        traced = _traced(function, (3, 5), (5, 7))
        assert count_flops(traced, "gpu").flops == 2 * 3 * 5 * 7


def test_a_gpu_counts_by_the_traced_program():
    traced = _traced(jnp.matmul, (3, 5), (5, 7))
    # Its compiler does not see what cuBLAS computes.
    assert program_flops(traced, "gpu", by_compiler=10.0) == 2 * 3 * 5 * 7
    assert program_flops(traced, "cpu", by_compiler=10.0) == 10
