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

pytestmark = pytest.mark.ci


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


def compiled(devices, form, tokens=1024, channels=80):
    """Compile a transformer block, forward and gradient."""
    mesh = meshes.make_mesh(meshes.MeshConfig(data=-1), devices)
    block = TransformerBlock(2, jnp.bfloat16, form)
    # Smaller batches would stay on the chip, and need no memory beside it.
    x = jax.ShapeDtypeStruct((64, tokens, channels), jnp.bfloat16)
    text = jax.ShapeDtypeStruct((64, 77, 16), jnp.bfloat16)
    params = jax.eval_shape(block.init, jax.random.key(0), x, text)

    def loss(params, x, text):
        return block.apply(params, x, text).astype(jnp.float32).mean()

    place = functools.partial(jax.tree.map, lambda x, s: x.update(sharding=s))
    batch = meshes.batch_sharding(mesh)
    params = place(params, jax.tree.map(lambda _: meshes.replicated(mesh), params))
    x, text = (x.update(sharding=batch) for x in (x, text))
    gradient = jax.jit(meshes.on_mesh(mesh, jax.grad(loss, (0, 1))))
    traced = gradient.trace(params, x, text)
    return traced.lower(lowering_platforms=("tpu",)).compile()


def test_a_block_of_1024_tokens_holds_less_on_four_chips(chips):
    fused, plain = (compiled(chips, form) for form in ("auto", "plain"))
    assert "attention_backward" in fused.as_text()
    assert "attention_backward" not in plain.as_text()
    held = [program.memory_analysis().temp_size_in_bytes for program in (fused, plain)]
    assert held[0] < 0.5 * held[1]
    traffic = [program.cost_analysis()["bytes accessed"] for program in (fused, plain)]
    assert traffic[0] < 0.5 * traffic[1]
