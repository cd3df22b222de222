"""Every form of attention gives what plain products give, with its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import meshes
from medjax.errors import UserError
from medjax.models import attention_forms, attention_kernel, attention_splash
from medjax.models.attention_forms import attend, check_form
from medjax.models.attention_kernel import block_of_queries, fits, fused, kernel_cost
from medjax.models.attention_splash import blocks, padded, splash
from medjax.program_costs import count_flops

pytestmark = pytest.mark.devices(8)

TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2}
release = functools.partial(pytest.param, marks=pytest.mark.release)
interpreted = functools.partial(fused, interpret=True)


@pytest.fixture
def any_processor(monkeypatch):
    """Compute products of bfloat16 from float32 copies, which gives the same numbers.

    On many processors XLA has no product of bfloat16 with a float32 result.
    """

    def widened(dot):
        def product(a, b, *args, **options):
            return dot(a.astype(jnp.float32), b.astype(jnp.float32), *args, **options)

        return product

    product, general = attention_kernel._product, jax.lax.dot_general
    monkeypatch.setattr(attention_kernel, "_product", widened(product))
    monkeypatch.setattr(jax.lax, "dot_general", widened(general))


def drawn(queries, keys, heads, width, dtype=jnp.float32, batch=1):
    rng = np.random.default_rng(0)
    shapes = [(batch, n, heads, width) for n in (queries, keys, keys)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def with_gradients(attention, operands):
    """Return the result and the gradients for a gradient that is not symmetric."""

    @jax.jit
    def both(*operands):
        attended, pullback = jax.vjp(attention, *operands)
        return attended, *pullback(
            jnp.sin(attended.astype(jnp.float32) + 1).astype(attended.dtype)
        )

    return both(*operands)


def relative(found, true):
    found, true = (np.asarray(x, np.float64) for x in (found, true))
    return np.linalg.norm(found - true) / np.linalg.norm(true)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("queries", "keys", "width"),
    [
        (256, 256, 40),
        (200, 77, 8),
        release(64, 64, 64),
        release(64, 64, 80),
        release(300, 257, 40),
        release(576, 576, 64),
        release(1024, 1024, 80),
        release(1024, 77, 80),
        release(256, 256, 160),
        release(256, 77, 160),
        release(1600, 1600, 40),
        release(4096, 4096, 40),
        release(4096, 77, 64),
    ],
)
@pytest.mark.parametrize("kernel", [fused, pytest.param(splash, marks=pytest.mark.ci)])
def test_a_kernel_is_plain_attention(
    kernel, queries, keys, width, dtype, optimized, any_processor
):
    operands = drawn(queries, keys, 1, width, dtype)
    exact = [x.astype(jnp.float32) for x in operands]
    plain = with_gradients(jax.nn.dot_product_attention, exact)
    ours = with_gradients(functools.partial(kernel, interpret=True), operands)
    for found, true in zip(ours, plain, strict=True):
        assert found.dtype == dtype and found.shape == true.shape
        assert relative(found, true) <= TOLERANCE[dtype]


@pytest.mark.ci
def test_keys_in_several_blocks(monkeypatch):
    """The sums over blocks of keys are those of all keys."""
    monkeypatch.setattr(attention_splash, "_MOST_BYTES", 0)
    operands = drawn(256, 384, 1, 8)
    plain = with_gradients(jax.nn.dot_product_attention, operands)
    ours = with_gradients(functools.partial(splash, interpret=True), operands)
    for found, true in zip(ours, plain, strict=True):
        assert relative(found, true) <= 1e-5


@pytest.mark.parametrize("length", [1, 77, 128, 576, 1600, 4096, 9216])
@pytest.mark.parametrize(("width", "itemsize"), [(40, 2), (160, 2), (512, 4)])
def test_blocks_divide_the_padded_length_and_fit(length, width, itemsize):
    whole = padded(length)
    sizes = blocks(whole, whole, width, itemsize)
    assert whole - length < 128
    assert all(whole % size == 0 and size % 128 == 0 for size in sizes)
    assert sizes[2] * padded(width) * itemsize <= 2**20


def test_keys_without_a_gradient():
    """Frozen projections of a caption need the queries' gradient only."""
    query, key, value = drawn(128, 77, 1, 8)
    plain, ours = (
        jax.jit(jax.grad(lambda q, f=attention: jnp.sin(f(q, key, value)).sum()))(query)
        for attention in (jax.nn.dot_product_attention, interpreted)
    )
    assert relative(ours, plain) <= 1e-5


def test_forward_mode():
    operands, tangents = drawn(128, 128, 1, 8), drawn(128, 128, 1, 8)[::-1]
    for ours, theirs in zip(
        jax.jvp(interpreted, operands, tangents),
        jax.jvp(jax.nn.dot_product_attention, operands, tangents),
        strict=True,
    ):
        assert relative(ours, theirs) <= 1e-5


@pytest.mark.ci
def test_each_device_runs_the_kernel_on_its_examples_and_heads():
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 2))
    operands = drawn(128, 128, 4, 8, batch=4)
    split = jax.device_put(operands, meshes.batch_sharding(mesh))
    each = meshes.on_mesh(mesh, attention_forms._on_each_device(interpreted))
    ours = with_gradients(each, split)
    plain = with_gradients(jax.nn.dot_product_attention, operands)
    for found, true in zip(ours, plain, strict=True):
        assert relative(found, true) <= 1e-5


def lowered(function, platform, operands):
    traced = jax.jit(lambda *xs: with_gradients(function, xs)).trace(*operands)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("queries", "keys", "name"),
    [
        (256, 256, "attention_backward"),
        (300, 77, "attention_backward"),
        (256, 8192, "splash_mha_dkv"),
        (64, 64, ""),
    ],
)
def test_long_attention_is_fused_on_a_tpu_only(queries, keys, name):
    operands = drawn(queries, keys, 1, 8)
    text = lowered(attend, "tpu", operands)
    assert ("tpu_custom_call" in text) == bool(name) and name in text
    for platform in ("cpu", "cuda"):
        assert "custom_call" not in lowered(attend, platform, operands)


def test_the_form_can_be_chosen():
    operands = drawn(256, 256, 1, 8)
    plain = functools.partial(attend, form="plain")
    assert "tpu_custom_call" not in lowered(plain, "tpu", operands)
    short = drawn(64, 77, 1, 8)
    for form, name in (("fused", "attention_forward"), ("splash", "splash_mha_fwd")):
        assert name in lowered(functools.partial(attend, form=form), "tpu", short)
    with pytest.raises(UserError, match="=fused: 8192 keys of 8 channels do not fit"):
        attend(*drawn(8, 8192, 1, 8), form="fused")


@pytest.mark.parametrize(
    ("length", "width", "itemsize", "whole"),
    [
        (4096, 40, 2, True),
        (4096, 160, 2, True),
        (4096, 512, 2, False),
        (4097, 40, 2, False),
        (1024, 160, 4, True),
    ],
)
def test_keys_fit_on_the_chip(length, width, itemsize, whole):
    assert fits(length, width, itemsize) == whole


@pytest.mark.parametrize("n", [128, 384, 4096])
@pytest.mark.parametrize("length", [128, 1024, 4096])
def test_blocks_of_queries_divide_them(n, length):
    block = block_of_queries(n, length)
    assert n % block == 0 and block % 128 == 0
    assert block == 128 or block * length <= 2**19


def test_the_cost_of_our_kernel_by_hand():
    shape = (8, 8, 40, 4096)
    scores, array = 64 * 4096 * 4096, 64 * 4096 * 40 * 2
    # Q, K, V, O; and Q, K, V, dO, dQ, dK, dV.
    forward, backward = (
        (2 * 2 * scores * 40, 4 * array),
        (5 * 2 * scores * 40, 7 * array),
    )
    for found, (flops, moved) in (
        (kernel_cost(shape, shape, 2, False), forward),
        (kernel_cost(shape, shape, 2, True), backward),
    ):
        assert found == (flops, scores, moved)


def test_causal_attention_is_that_of_jax():
    operands = drawn(9, 9, 2, 8)
    plain = functools.partial(jax.nn.dot_product_attention, is_causal=True)
    for ours, theirs in zip(
        with_gradients(functools.partial(attend, causal=True), operands),
        with_gradients(plain, operands),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("width", "capability", "said"),
    [
        (64, (8, 0), ""),
        (160, (8, 0), "multiple of 8 up to 128"),
        (160, (9, 0), ""),
        (12, (9, 0), "multiple of 8"),
        (64, (), "a GPU with cuDNN"),
    ],
)
def test_cudnn_has_limits(width, capability, said, monkeypatch):
    monkeypatch.setattr(attention_forms, "_cudnn_capability", lambda: capability)
    query, key, _ = drawn(8, 8, 1, width, jnp.bfloat16)
    found = attention_forms._cudnn_problem(query, key)
    assert said in found and bool(said) == bool(found)
    assert "float32" in attention_forms._cudnn_problem(query.astype(jnp.float32), key)


@pytest.mark.usefixtures("traced_for_a_gpu")
def test_cudnn_refuses_an_odd_number_of_tokens():
    query, key, value = drawn(8, 77, 1, 8, jnp.bfloat16)
    with pytest.raises(
        UserError, match="even numbers of tokens, got 8 and 77; use auto"
    ):
        attend(query, key, value, form="cudnn")


@pytest.fixture
def traced_for_a_gpu(monkeypatch):
    """Let cuDNN's attention be traced here, as on a Hopper GPU."""
    cudnn = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{cudnn}.check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(f"{cudnn}.check_compute_capability", lambda _: True)
    monkeypatch.setattr(attention_forms, "_cudnn_capability", lambda: (9, 0))


@pytest.mark.usefixtures("traced_for_a_gpu")
@pytest.mark.parametrize(("keys", "fused"), [(64, True), (77, False)])
def test_gradients_on_a_gpu_are_traced_and_counted(keys, fused):
    operands = drawn(64, keys, 2, 8, jnp.bfloat16)

    def loss(*operands):
        return attend(*operands).astype(jnp.float32).sum()

    traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(*operands)
    assert ("dot_product_attention_bwd" in str(traced.jaxpr)) == fused
    product = 2 * operands[0].size * keys
    # cuDNN has two products forward and five backward, plain attention one less.
    assert count_flops(traced, "gpu").flops == (7 if fused else 6) * product


def test_no_gpu_is_found_here():
    assert attention_forms._cudnn_capability() == ()
    with pytest.raises(UserError, match=r"^config.model.attention=cudnn: expected"):
        attend(*drawn(8, 8, 1, 8), form="cudnn")


@pytest.mark.parametrize(
    ("form", "platform", "dtype", "said"),
    [
        ("splash", "cpu", "bfloat16", "=splash: expected a TPU, got a CPU; use auto"),
        ("cudnn", "tpu", "bfloat16", "=cudnn: expected a GPU, got a TPU; use auto"),
        ("cudnn", "gpu", "float32", "=cudnn: expected config.model.dtype=bfloat16"),
        ("flash", "tpu", "bfloat16", "=flash: expected one of auto, plain, fused"),
    ],
)
def test_a_form_that_a_platform_does_not_have_is_refused(form, platform, dtype, said):
    with pytest.raises(UserError, match=said):
        check_form(form, platform, dtype)


@pytest.mark.parametrize("form", ["auto", "plain"])
def test_every_platform_has_these(form):
    for platform in ("cpu", "gpu", "tpu"):
        check_form(form, platform, "float32")
