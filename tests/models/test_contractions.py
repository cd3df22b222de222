"""Each form of a product gives what XLA's own gives, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from medjax import meshes
from medjax.models.attention_forms import attend as attention
from medjax.models.contractions import conv_general_dilated, dot_general

pytestmark = pytest.mark.devices(8)

DTYPES = [jnp.float32, jnp.bfloat16]
NHWC = ("NHWC", "HWIO", "NHWC")
# Relative to the largest number: float32's sums, and a step of bfloat16.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


def drawn(*shape, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def with_gradients(function, *operands):
    """Return the function's value and its gradients, all of one program."""

    @jax.jit
    def compute(*operands):
        value, pullback = jax.vjp(function, *operands)
        gradient = drawn(*value.shape, dtype=value.dtype, seed=9)
        return value, *pullback(gradient)

    return compute(*operands)


def assert_same(ours, theirs, dtype):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == dtype
        assert a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= TOLERANCE[dtype] * np.abs(b).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(5,), (2, 3), (2, 3, 4)])
def test_dense(lead, dtype):
    x, kernel = drawn(*lead, 6, dtype=dtype), drawn(6, 7, dtype=dtype, seed=1)
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    ours = with_gradients(lambda x, k: dot_general(x, k, axes), x, kernel)
    theirs = with_gradients(lambda x, k: lax.dot_general(x, k, axes), x, kernel)
    assert_same(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("side", "kernel", "stride", "pad"),
    [
        (1, 3, 1, 1),
        (5, 3, 1, 1),
        pytest.param(15, 3, 1, 1, marks=pytest.mark.ci),
        (17, 3, 1, 1),
        pytest.param(65, 3, 1, 1, marks=pytest.mark.ci),
        (5, 1, 1, 0),
        (5, 3, 2, 1),
    ],
)
def test_convolution(side, kernel, stride, pad, dtype):
    x = drawn(2, side, side + 1, 64, dtype=dtype)
    weights = drawn(kernel, kernel, 64, 72, dtype=dtype, seed=1)
    form = ((stride, stride), ((pad, pad), (pad, pad)))
    ours = with_gradients(lambda x, k: conv_general_dilated(x, k, *form), x, weights)
    theirs = with_gradients(
        lambda x, k: lax.conv_general_dilated(x, k, *form, dimension_numbers=NHWC),
        x,
        weights,
    )
    assert_same(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        (5, 5),
        pytest.param(64, 7, marks=pytest.mark.ci),
        (1024, 77),
        pytest.param(512, 512, marks=pytest.mark.ci),
        pytest.param(600, 520, marks=pytest.mark.ci),
        (521, 521),
    ],
)
def test_attention(queries, keys, dtype):
    # Scores far from 0, which overflow if the largest is not taken off.
    query = 40 * drawn(2, queries, 3, 8, dtype=dtype)
    key, value = (drawn(2, keys, 3, 8, dtype=dtype, seed=seed) for seed in (1, 2))
    ours = with_gradients(attention, query, key, value)
    exact = (x.astype(jnp.float32) for x in (query, key, value))
    theirs = with_gradients(jax.nn.dot_product_attention, *exact)
    assert_same(ours, (x.astype(dtype) for x in theirs), dtype)


def test_attention_sums_its_gradients_over_many_queries_in_float32():
    """In bfloat16 no further from float32's than twice as far as XLA's own are."""
    operands = [
        drawn(1, count, 2, 8, dtype=jnp.bfloat16, seed=seed)
        for seed, count in enumerate((4096, 512, 512))
    ]
    exact = (x.astype(jnp.float32) for x in operands)
    exact = with_gradients(jax.nn.dot_product_attention, *exact)
    ours = with_gradients(attention, *operands)
    native = with_gradients(jax.nn.dot_product_attention, *operands)

    def error(found, true):
        return np.linalg.norm(found.astype(jnp.float32) - true)

    for a, b, true in zip(ours, native, exact, strict=True):
        assert error(a, true) < 2 * error(b, true)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.ci)]
)
def test_split_attention(dtype):
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 2))
    operands = [drawn(4, 512, 2, 8, dtype=dtype, seed=seed) for seed in range(3)]

    def attend(*operands):
        return attention(
            *(meshes.split_activations(x, None, "tensor") for x in operands)
        )

    split = jax.device_put(operands, meshes.batch_sharding(mesh))
    compute = jax.jit(meshes.on_mesh(mesh, lambda *xs: with_gradients(attend, *xs)))
    assert_same(compute(*split), with_gradients(attention, *operands), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_split_convolution(dtype):
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 2))
    x, weights = drawn(4, 6, 6, 64, dtype=dtype), drawn(3, 3, 64, 64, dtype=dtype)
    form = ((1, 1), ((1, 1), (1, 1)))

    def convolve(x, kernel):
        kernel = meshes.gather_params({"kernel": kernel})["kernel"]
        return meshes.split_activations(conv_general_dilated(x, kernel, *form))

    split = (
        jax.device_put(x, meshes.batch_sharding(mesh)),
        jax.device_put(
            weights, meshes.param_shardings({"kernel": weights}, mesh)["kernel"]
        ),
    )
    compute = jax.jit(meshes.on_mesh(mesh, lambda *xs: with_gradients(convolve, *xs)))
    whole = with_gradients(lambda x, k: conv_general_dilated(x, k, *form), x, weights)
    assert_same(compute(*split), whole, dtype)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_keep_their_own_operations(platform):
    x = drawn(1, 8, 8, 64, dtype=jnp.bfloat16)
    kernel = drawn(3, 3, 64, 64, dtype=jnp.bfloat16)

    def gradients(x, kernel):
        form = ((1, 1), ((1, 1), (1, 1)))
        return with_gradients(lambda x, k: conv_general_dilated(x, k, *form), x, kernel)

    traced = jax.jit(gradients).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") >= 3
    assert "stablehlo.dot_general" not in text
    here = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.dot_general" in here


def test_attention_is_taken_apart_on_the_cpu_alone():
    operands = [drawn(1, 512, 2, 8, dtype=jnp.float32, seed=seed) for seed in range(3)]
    traced = jax.jit(lambda *xs: with_gradients(attention, *xs)).trace(*operands)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.while" not in text
    native = jax.nn.dot_product_attention
    plain = jax.jit(lambda *xs: with_gradients(native, *xs)).trace(*operands)
    plain = plain.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("dot_general") == plain.count("dot_general") > 0
    here = traced.lower(lowering_platforms=("cpu",)).as_text()
    # One loop for the result, one for the gradient.
    assert here.count("stablehlo.while") == 2
