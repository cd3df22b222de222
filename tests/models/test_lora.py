"""A layer with an adapter computes what its merged kernel would; without, the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees
from medjax.models import contractions, lora
from medjax.models.attention import TransformerBlock
from medjax.models.layers import Conv, conv, dense

RANK = 3
LAYERS = {
    "dense": (dense(7, name="layer"), (4, 5, 6), (6,)),
    "1x1": (conv(7, 1, name="layer"), (4, 5, 5, 6), (1, 1, 6)),
    "3x3": (conv(7, name="layer"), (4, 5, 5, 6), (3, 3, 6)),
    "strided": (conv(7, stride=2, name="layer"), (4, 5, 5, 6), (3, 3, 6)),
}


def normal(*shape, seed=0):
    drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jnp.asarray(drawn)


def adapter(fan_in, out=7, scale=2.0, **more):
    a, b = normal(*fan_in, RANK, seed=3), normal(RANK, out, seed=4)
    return {"lora_a": a, "lora_b": b, "lora_scale": scale, **more}


@pytest.fixture(params=LAYERS)
def layer(request):
    """A layer, its input, its weights, and the shape of what it sums over."""
    module, shape, fan_in = LAYERS[request.param]
    params = {"kernel": normal(*fan_in, 7, seed=1), "bias": normal(7, seed=2)}
    return module, normal(*shape), params, fan_in


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_an_adapter_the_program_is_flaxs(layer, dtype):
    module, x, params, fan_in = layer
    module = module.clone(dtype=dtype)
    if isinstance(module, Conv):
        plain = nn.Conv(
            *(7, fan_in[:2]),
            strides=module.stride,
            padding=module.kernel_size // 2,
            dtype=dtype,
            conv_general_dilated=contractions.conv_general_dilated,
        )
    else:
        plain = nn.Dense(7, dtype=dtype, dot_general=contractions.dot_general)
    ours, theirs = (
        str(jax.make_jaxpr(lambda p, m=m: m.apply({"params": p}, x))(params))
        for m in (module, plain)
    )
    assert ours == theirs


def test_an_adapter_adds_what_its_merged_kernel_would(layer):
    module, x, params, fan_in = layer
    extra = adapter(fan_in)
    got = module.apply({"params": params, "lora": extra}, x)
    change = 2.0 * (extra["lora_a"] @ extra["lora_b"])
    merged = params | {"kernel": params["kernel"] + change}
    expected = module.apply({"params": merged}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    assert np.abs(got - module.apply({"params": params}, x)).max() > 1


def test_an_adapter_is_float32_and_computed_in_the_layers_dtype(layer):
    module, x, params, fan_in = layer
    module = module.clone(dtype=jnp.bfloat16)

    def total(extra):
        y = module.apply({"params": params, "lora": extra}, x)
        assert y.dtype == jnp.bfloat16
        return y.astype(jnp.float32).sum()

    gradients = jax.grad(total)(adapter(fan_in))
    for name in ("lora_a", "lora_b"):
        assert gradients[name].dtype == jnp.float32
        assert np.abs(gradients[name]).max() > 0


def test_an_example_keeps_its_mask_in_any_batch(layer):
    module, x, params, fan_in = layer
    keys = jax.random.split(jax.random.key(5), len(x))

    def output(rows, rate=0.5):
        extra = adapter(fan_in, lora_keys=keys[rows], lora_rate=rate)
        return module.apply({"params": params, "lora": extra}, x[rows])

    whole, some = output(np.arange(4)), output(np.array([2, 0]))
    np.testing.assert_allclose(some, whole[np.array([2, 0])], rtol=1e-5, atol=1e-5)
    without = module.apply({"params": params, "lora": adapter(fan_in)}, x)
    assert np.abs(whole - without).max() > 1
    np.testing.assert_array_equal(output(np.arange(4), 0.0), without)


def test_dropout_drops_its_fraction_and_keeps_the_mean():
    x = jnp.ones((200, 50))
    keys = jax.random.split(jax.random.key(0), 200)
    dropped = np.asarray(lora.dropped_out(x, keys, 0.2))
    assert np.unique(dropped).tolist() == [0.0, 1.25]
    assert (dropped == 0).mean() == pytest.approx(0.2, abs=0.02)
    assert len(np.unique(dropped, axis=0)) == 200


@pytest.mark.ci
def test_adapters_reach_layers_whose_activations_are_computed_again():
    x, text = normal(2, 5, 8), normal(2, 3, 6, seed=1)
    block = TransformerBlock(2, name="block")
    params = jax.eval_shape(block.init, jax.random.key(0), x, text)["params"]
    params = jax.tree.map(lambda s: 0.3 * normal(*s.shape, seed=s.size), params)
    keys = jax.random.split(jax.random.key(5), 2)
    dropout = {"lora_keys": keys, "lora_rate": 0.5}
    extra = {"attn1/to_q": adapter((8,), 8), "attn2/to_k": adapter((6,), 8, **dropout)}
    extra = trees.unflatten(extra)

    def total(module):
        def loss(extra):
            output = module.apply({"params": params, "lora": extra}, x, text)
            return jnp.square(output).sum()

        return jax.jit(jax.value_and_grad(loss, allow_int=True))(extra)

    value, plain = total(block)
    again, remat = total(nn.remat(TransformerBlock)(2, name="block"))
    assert float(value) == pytest.approx(float(again), rel=1e-6)
    a, b = plain["attn1"]["to_q"]["lora_a"], remat["attn1"]["to_q"]["lora_a"]
    assert np.abs(a).max() > 1e-3
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
