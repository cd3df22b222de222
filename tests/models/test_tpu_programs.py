"""What the TPU's compiler makes of our networks, on a machine without a TPU.

`libtpu` compiles for chips that are absent. Its licence is the Google Cloud Platform
Terms of Service; without it these tests are skipped.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from medjax import meshes
from medjax.compiling.compiled import compile_program
from medjax.compiling.preflight import preflight
from medjax.compiling.run_programs import RunProgram
from medjax.compiling.topologies import find_topology
from medjax.config_files import load_config
from medjax.models.attention import TransformerBlock
from medjax.models.attention_forms import attend
from medjax.models.feed_forward import FeedForward
from medjax.models.layers import Dense
from medjax.runs.config import parse
from tests.smallest import save_smallest

pytestmark = pytest.mark.ci

WIDTH = 1024
# Of the feed-forward network; it has far more activations than weights.
TOKENS, CHANNELS = 4096, 64


@pytest.fixture
def chips(monkeypatch):
    """Four chips that are not there."""
    pytest.importorskip("libtpu")
    # libtpu ends the process at a flag that it does not know, such as those for CPUs.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return find_topology("v6e:2x2")


def gradient_of(function, shapes, topology):
    """Return the program of a function of 64 examples."""
    mesh = meshes.make_mesh(meshes.MeshConfig(data=-1), topology.devices)
    # Smaller batches would stay on the chip, and need no memory beside it.
    sharding = meshes.batch_sharding(mesh)
    given = tuple(
        jax.ShapeDtypeStruct((64, *shape), jnp.bfloat16, sharding=sharding)
        for shape in shapes
    )
    return RunProgram(
        "gradient", jax.jit(meshes.on_mesh(mesh, function)), given, images=64
    )


def attention(form, topology):
    def gradient(*operands):
        def loss(*operands):
            return attend(*operands, form=form).astype(jnp.float32).mean()

        return jax.grad(loss, (0, 1, 2))(*operands)

    return gradient_of(gradient, [(1024, 2, 40)] * 3, topology)


def transformer_block(form, topology):
    def gradient(x, text):
        block = TransformerBlock(2, jnp.bfloat16, form)
        shapes = jax.eval_shape(block.init, jax.random.key(0), x, text)
        params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)

        def loss(params, x, text):
            return block.apply(params, x, text).astype(jnp.float32).mean()

        return jax.grad(loss, (0, 1))(params, x, text)

    return gradient_of(gradient, [(1024, 80), (77, 16)], topology)


@pytest.mark.parametrize("make", [attention, transformer_block])
def test_fused_attention_of_1024_tokens_holds_less_on_four_chips(chips, make, tmp_path):
    fused, plain = (
        compile_program(functools.partial(make, form), chips, tmp_path)
        for form in ("auto", "plain")
    )
    # Backward alone, as the value is not used; of a block, forward too, twice each.
    assert fused.kernels == {attention: 1, transformer_block: 4}[make]
    assert plain.kernels == 0
    assert fused.temporary_bytes < 0.5 * plain.temporary_bytes
    assert fused.hbm_bytes < 0.6 * plain.hbm_bytes


def weight_gradient(net, x, config, topology, sharding):
    """Return the program of a network's weight gradient, split as its weights are."""
    mesh = meshes.make_mesh(config, topology.devices)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    params = meshes.sharded_shapes(shapes, meshes.param_shardings(shapes, mesh))
    given = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(mesh))

    def gradient(params, x):
        def loss(params):
            return jnp.square(net.apply(params, x).astype(jnp.float32)).mean()

        gradients = jax.grad(loss)(params)
        shardings = meshes.param_shardings(gradients, mesh)
        return jax.lax.with_sharding_constraint(gradients, shardings)

    function = jax.jit(meshes.on_mesh(mesh, gradient))
    return RunProgram("gradient", function, (params, given), x.shape[0])


def two_layers(topology):
    """Two dense layers, in bfloat16 on float32 kernels over fsdp."""
    net = nn.Sequential([Dense(WIDTH, dtype=jnp.bfloat16) for _ in range(2)])
    x = jax.ShapeDtypeStruct((64, WIDTH), jnp.bfloat16)
    config = meshes.MeshConfig(fsdp=4)
    return weight_gradient(net, x, config, topology, meshes.batch_sharding)


def test_kernels_are_gathered_in_the_dtype_of_the_computation(chips, tmp_path):
    found = compile_program(two_layers, chips, tmp_path)
    # Each chip sends its quarter of both kernels to three others: two bytes a number.
    once = 2 * 3 / 4 * 2 * WIDTH**2
    assert once <= found.link_bytes["all-gather"] < 1.9 * once


def feed_forward(topology):
    """A feed-forward network whose layers four chips split."""
    x = jax.ShapeDtypeStruct((8, TOKENS, CHANNELS), jnp.bfloat16)
    config = meshes.MeshConfig(tensor=4)
    net = FeedForward(jnp.bfloat16)
    return weight_gradient(net, x, config, topology, meshes.replicated)


def test_gated_halves_do_not_cross_the_tensor_axis(chips, tmp_path):
    sent = compile_program(feed_forward, chips, tmp_path).link_bytes
    # A chip's activations of both halves, against its kernels of both layers.
    activations = 2 * 8 * TOKENS * 8 * CHANNELS // 4
    kernels = 4 * (8 + 4) * CHANNELS**2 // 4
    moved = sum(size for name, size in sent.items() if name != "all-reduce")
    assert moved < 4 * kernels < 0.2 * activations


def test_the_tiny_step_has_fused_attention_on_four_chips(chips, tmp_path):
    config = load_config("config", "cxr_controlnet:demo")
    config.model.pretrained = save_smallest(tmp_path / "base")
    config.model.dtype = "bfloat16"
    # 32 × 32 latents.
    config.data.image_size = 64
    found = preflight(parse(config), chips, tmp_path, ("step",))
    step = found.estimates["step"]
    assert found.fits
    # Self- and cross-attention of two middles, gradients of one, and the autoencoder's.
    assert step.figures.kernels == 2 * 2 + 2 + 1
    assert step.figures.link_bytes["all-reduce"] > 0
    assert step.bound in ("arithmetic", "memory traffic")
