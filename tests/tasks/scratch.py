"""Tasks without a base, small enough to compile in seconds."""

import dataclasses
import functools

import jax
import numpy as np

from medjax import meshes
from medjax.data.config import ClassDataConfig
from medjax.data.phantoms import PhantomSource
from medjax.diffusion.objective import ScheduledDiffusionConfig
from medjax.runs.sections import OptimConfig
from medjax.tasks.autoencoder_loss import autoencoder_weights
from medjax.tasks.interface import TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.unconditional import UnconditionalConfig, make_unconditional_task
from medjax.tasks.vq_vae import VQVAEConfig, make_vq_vae_task
from medjax.training.optimizer import make_optimizer
from medjax.training.step import init_state, make_train_step

KEY = jax.random.key(0)
VQ = VQVAEConfig(
    block_out_channels=(8, 8),
    layers_per_block=1,
    mid_layers=2,
    attention_heads=2,
    norm_num_groups=4,
    codebook_size=16,
    dtype="float32",
)
UNET = UnconditionalConfig(
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_levels=(1,),
    attention_head_dim=4,
    norm_num_groups=4,
    dtype="float32",
)
CONV = UnconditionalConfig(
    architecture="conv_unet",
    block_out_channels=(8, 8, 16),
    layers_per_block=1,
    dtype="float32",
)


def vq_vae(**changes):
    """Return a VQ-VAE's assembly, whose arrays the caller may change."""
    return copied(_vq_vae(dataclasses.replace(VQ, **changes), _client()))


@functools.cache
def _vq_vae(model, client):
    return make_vq_vae_task(
        TaskInputs(model, ClassDataConfig(image_size=16), None, KEY)
    )


def _client():
    """Return what all arrays of a module of tests depend on; each has a new one."""
    return jax.devices()[0].client


def copied(assembly):
    """Return the assembly with arrays of its own."""
    names = ("params", "frozen", "statistics")
    copies = {n: jax.tree.map(lambda x: x.copy(), getattr(assembly, n)) for n in names}
    return dataclasses.replace(assembly, **copies)


def trained(assembly):
    """Return an assembly's autoencoder, as if it had been trained."""
    weights = autoencoder_weights(assembly.params | assembly.statistics)
    return TrainedAutoencoder(assembly.task.module, weights, "its own")


def latent_diffusion():
    """Return an assembly of diffusion in the latents of `vq_vae`."""
    return copied(_latent_diffusion(_client()))


@functools.cache
def _latent_diffusion(client):
    return unconditional(autoencoder=trained(vq_vae()))


def unconditional(model=UNET, classes=(), autoencoder=None, **diffusion):
    """Return an assembly of diffusion of 16 × 16 phantoms."""
    if autoencoder is not None:
        model = dataclasses.replace(model, autoencoder="run")
    data = ClassDataConfig(image_size=16, batch_size=4, classes=classes)
    objective = ScheduledDiffusionConfig(**diffusion)
    source = PhantomSource("train", 16, 40)
    return make_unconditional_task(
        TaskInputs(model, data, objective, KEY, autoencoder, source)
    )


def batch(size=4, side=16, seed=1, labels=False):
    """Return a batch of random images, gray as a film in three channels."""
    random = np.random.default_rng(seed)
    gray = random.uniform(-1, 1, (size, side, side, 1)).astype(np.float32)
    made = {"images": np.repeat(gray, 3, -1)}
    if labels:
        made["labels"] = random.integers(0, 2, size).astype(np.int32)
    return jax.tree.map(jax.numpy.asarray, made)


def train(assembly, steps, mesh_sizes=(1, 1, 1), accumulation=1, ema_decay=None):
    """Train some steps; return their metrics and the state."""
    count = int(np.prod(mesh_sizes))
    mesh = meshes.make_mesh(meshes.MeshConfig(*mesh_sizes), jax.devices()[:count])
    optimizer = make_optimizer(OptimConfig(learning_rate=3e-3), steps, assembly.params)
    given = (assembly.params, assembly.statistics)
    state = init_state(*given, optimizer, mesh, ema_decay is not None)
    step = make_train_step(
        assembly.task,
        optimizer,
        mesh,
        accumulation_steps=accumulation,
        ema_decay=ema_decay,
    )
    frozen = meshes.place_params(assembly.frozen, mesh)
    history = []
    for _ in range(steps):
        placed = meshes.place_batch(jax.tree.map(np.asarray, batch(8)), mesh)
        state, metrics = step(state, frozen, placed, KEY)
        history.append({name: float(x) for name, x in metrics.items()})
    return history, state
