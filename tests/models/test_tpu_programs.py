"""What the TPU's compiler makes of our networks, on a machine without a TPU.

`libtpu` compiles for chips that are absent. Its licence is the Google Cloud Platform
Terms of Service; without it these tests are skipped.
"""

import functools
import os

import jax
import jax.numpy as jnp
import pytest

from medjax import meshes
from medjax.models.attention import TransformerBlock
from medjax.models.attention_forms import attend


@pytest.fixture
def chips(monkeypatch):
    pytest.importorskip("libtpu")
    # libtpu ends the process at a flag that it does not know, such as those for CPUs.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v6e-4")
    # A lock file would let one process at a time load the compiler.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2")
    return topology.devices


def compiled(function, devices, *shapes):
    """Compile a function of examples on some devices, and return the program."""
    mesh = meshes.make_mesh(meshes.MeshConfig(data=-1), devices)
    # Smaller batches would stay on the chip, and need no memory beside it.
    sharding = meshes.batch_sharding(mesh)
    given = [
        jax.ShapeDtypeStruct((64, *shape), jnp.bfloat16, sharding=sharding)
        for shape in shapes
    ]
    traced = jax.jit(meshes.on_mesh(mesh, function)).trace(*given)
    return traced.lower(lowering_platforms=("tpu",)).compile()


def check_that_fused_holds_less(fused, plain):
    """Check the kernel, the temporaries and the traffic of two programs."""
    assert "attention_backward" in fused.as_text()
    assert "attention_backward" not in plain.as_text()
    held = [program.memory_analysis().temp_size_in_bytes for program in (fused, plain)]
    assert held[0] < 0.5 * held[1]
    traffic = [program.cost_analysis()["bytes accessed"] for program in (fused, plain)]
    assert traffic[0] < 0.5 * traffic[1]


@pytest.mark.ci
def test_attention_of_1024_tokens_holds_less_on_four_chips(chips):
    def gradient(form, *operands):
        def loss(*operands):
            return attend(*operands, form=form).astype(jnp.float32).mean()

        return jax.grad(loss, (0, 1, 2))(*operands)

    heads = [(1024, 2, 40)] * 3
    check_that_fused_holds_less(
        *(
            compiled(functools.partial(gradient, form), chips, *heads)
            for form in ("auto", "plain")
        )
    )


@pytest.mark.release
def test_a_block_of_1024_tokens_holds_less_on_four_chips(chips):
    def gradient(form, x, text):
        block = TransformerBlock(2, jnp.bfloat16, form)
        shapes = jax.eval_shape(block.init, jax.random.key(0), x, text)
        params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)

        def loss(params, x, text):
            return block.apply(params, x, text).astype(jnp.float32).mean()

        return jax.grad(loss, (0, 1))(params, x, text)

    check_that_fused_holds_less(
        *(
            compiled(functools.partial(gradient, form), chips, (1024, 80), (77, 16))
            for form in ("auto", "plain")
        )
    )
