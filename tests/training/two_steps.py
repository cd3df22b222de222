"""Two steps of small tasks by SGD, on any mesh, with all gradients kept."""

import jax
import numpy as np
import optax

from medjax import meshes
from medjax.training.step import init_state, make_train_step
from tests.tasks import small

KEY = jax.random.key(7)
RATE = 0.1


def run(made, batches, mesh_sizes=(1, 1, 1), accumulation=1, ema_decay=None):
    """Train a step on each batch. With momentum 1, SGD's trace sums the gradients.

    Args:
        made: The task, what it trains, and what it does not.
        batches: One batch for each step.
        mesh_sizes: Devices along data, fsdp and tensor.
        accumulation: Microbatches of a step.
        ema_decay: That of the average; None for no average.

    Returns:
        Loss and norm of the gradient for each step, the state, and what did not train.
    """
    task, params, frozen = made
    count = int(np.prod(mesh_sizes))
    mesh = meshes.make_mesh(meshes.MeshConfig(*mesh_sizes), jax.devices()[:count])
    optimizer = optax.sgd(RATE, momentum=1.0)
    state = init_state(params, {}, optimizer, mesh, ema_decay is not None)
    frozen = jax.device_put(frozen, meshes.param_shardings(frozen, mesh))
    step = make_train_step(
        task, optimizer, mesh, accumulation_steps=accumulation, ema_decay=ema_decay
    )
    history = []
    for batch in batches:
        placed = meshes.place_batch(batch, mesh)
        state, metrics = step(state, frozen, placed, KEY)
        history.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(history), state, frozen


def run_controlnet(mesh_sizes=(1, 1, 1), accumulation=1, unet=small.UNET, side=8):
    """Train a locked ControlNet, with an average, on images of `side` pixels."""
    task, weights = small.make(unet=unet)
    batches = [small.batch(8, side, seed=i) for i in range(2)]
    made = (task, *small.split(weights))
    return run(made, batches, mesh_sizes, accumulation, ema_decay=0.9)


def assert_same(got, reference):
    """Assert that losses and gradients of two runs are equal but for rounding."""
    np.testing.assert_allclose(got[0], reference[0], rtol=1e-5)
    # The gradients themselves: parameters would add the rounding of being stored.
    ours, theirs = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(s.opt_state[0])])
        for s in (got[1], reference[1])
    )
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
