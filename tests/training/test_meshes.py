"""A step on any mesh equals one on one device, for each kind of what is learned."""

import jax
import numpy as np
import pytest

from medjax import meshes
from medjax.errors import UserError
from medjax.training.step import check_batch_size
from tests.tasks import scratch, small
from tests.tasks.adapted import run_adapted
from tests.training.two_steps import assert_same, run_controlnet

pytestmark = pytest.mark.devices(8)


@pytest.fixture(scope="module")
def controlnet():
    return run_controlnet()


@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [
        pytest.param((8, 1, 1), 1, marks=pytest.mark.release),
        pytest.param((2, 2, 2), 1, marks=pytest.mark.ci),
        pytest.param((1, 4, 2), 2, marks=pytest.mark.release),
    ],
)
def test_any_mesh_equals_one_device_and_really_splits(controlnet, mesh, accumulation):
    got = run_controlnet(mesh, accumulation)
    assert_same(got, controlnet)
    leaf = got[1].params["controlnet"]["mid_block"]["resnets_0"]["conv1"]["kernel"]
    parts = mesh[1] * mesh[2]
    assert leaf.addressable_shards[0].data.size == leaf.size // parts


@pytest.mark.release
@pytest.mark.parametrize("mesh", [(1, 4, 2), (2, 2, 2)])
def test_a_mesh_is_one_device_also_where_the_resolution_changes(mesh):
    shape = {"unet": small.TWO_LEVELS, "side": 16}
    assert_same(run_controlnet(mesh, **shape), run_controlnet(**shape))


@pytest.mark.release
@pytest.mark.parametrize(("mesh", "accumulation"), [((1, 1, 1), 4), ((2, 2, 2), 2)])
def test_masks_do_not_depend_on_mesh_or_accumulation(mesh, accumulation):
    assert_same(run_adapted(mesh, accumulation), run_adapted())


@pytest.fixture(scope="module")
def one_update():
    """One update on one device; after more, rounding may choose another entry."""
    return scratch.train(scratch.vq_vae(), 1)


@pytest.mark.parametrize(
    ("sizes", "accumulation"),
    [
        pytest.param((8, 1, 1), 1, marks=pytest.mark.release),
        pytest.param((1, 1, 1), 4, marks=pytest.mark.release),
        pytest.param((2, 2, 2), 2, marks=pytest.mark.ci),
    ],
)
def test_the_codebook_follows_all_devices_and_microbatches(
    sizes, accumulation, one_update
):
    one, first = one_update
    other, second = scratch.train(scratch.vq_vae(), 1, sizes, accumulation)
    assert one[0] == pytest.approx(other[0], rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        first.statistics,
        second.statistics,
    )


def test_batches_that_do_not_divide_are_refused():
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 1), jax.devices()[:4])
    check_batch_size(16, 2, mesh)
    with pytest.raises(UserError, match="multiple of 8"):
        check_batch_size(12, 2, mesh)
    with pytest.raises(UserError, match="multiple of 4"):
        check_batch_size(12, 0, mesh)
