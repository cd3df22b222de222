"""Meshes have sizes that fit the devices, and parameters are placed on them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from medjax.errors import UserError
from medjax.meshes import (
    MeshConfig,
    batch_sharding,
    batch_shards,
    make_mesh,
    param_shardings,
    param_spec,
)

pytestmark = pytest.mark.devices(8)


def test_minus_one_takes_the_devices_that_are_left():
    mesh = make_mesh(MeshConfig(-1, 2, 2), jax.devices()[:8])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert batch_shards(mesh) == 4


@pytest.mark.parametrize("config", [(3, 1, 1), (-1, 3, 1), (0, 1, 1), (-1, 0, 1)])
def test_sizes_that_do_not_fit_are_refused(config):
    with pytest.raises(UserError, match=r"config\.mesh\.data=-1|only data may be -1"):
        make_mesh(MeshConfig(*config), jax.devices()[:8])


@pytest.fixture
def two_slices(monkeypatch):
    """Let the odd devices be one slice, and the even ones another."""
    device = type(jax.devices()[0])
    number = property(lambda self: self.id % 2)
    monkeypatch.setattr(device, "slice_index", number, raising=False)


@pytest.mark.parametrize("config", [(-1, 2, 1), (-1, 2, 2), (2, 1, 4), (8, 1, 1)])
def test_only_data_crosses_from_one_slice_to_another(two_slices, config):
    mesh = make_mesh(MeshConfig(*config), jax.devices()[:8])
    slices = [[d.slice_index for d in row.flat] for row in mesh.devices]
    assert all(len(set(row)) == 1 for row in slices)
    assert [row[0] for row in slices] == sorted(row[0] for row in slices)
    assert mesh.devices.size == 8


def test_what_does_not_fit_a_slice_is_refused(two_slices):
    with pytest.raises(UserError, match="fsdp=8 × tensor=1 does not divide the 4 dev"):
        make_mesh(MeshConfig(1, 8, 1), jax.devices()[:8])


def test_rules_split_what_the_mesh_divides():
    mesh = make_mesh(MeshConfig(1, 4, 2), jax.devices()[:8])
    assert param_spec("unet/attn1/to_q/kernel", (320, 320), mesh) == P("fsdp", "tensor")
    assert param_spec("attn1/to_out_0/kernel", (320, 320), mesh) == P("tensor", "fsdp")
    assert param_spec("conv_in/kernel", (3, 3, 3, 320), mesh) == P(
        None, None, None, "tensor"
    )
    assert param_spec("norm/scale", (320,), mesh) == P()


def test_moments_lie_where_their_parameters_do():
    mesh = make_mesh(MeshConfig(1, 4, 2), jax.devices()[:8])
    leaf = jnp.zeros((8, 8))
    shardings = param_shardings(
        {"mu": {"a": {"kernel": leaf}}, "count": jnp.int32(0)}, mesh
    )
    assert shardings["mu"]["a"]["kernel"].spec == P("fsdp", "tensor")
    assert shardings["count"].spec == P()
    placed = jax.device_put(jnp.zeros((8, 2)), batch_sharding(mesh))
    assert placed.addressable_shards[0].data.shape == (2, 2)
