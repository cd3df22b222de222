"""Random numbers for training examples. Each example has its own key."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Key

from medjax.arrays import Array, Batch
from medjax.diffusion.objective import ObjectiveConfig, errors, min_snr_weights
from medjax.diffusion.schedule import Schedule, add_noise, target


def split(keys: Key[Array, " b"], n: int) -> list[Key[Array, " b"]]:
    """Split each key into `n` keys; return a list of `n` arrays of keys."""
    parts = jax.vmap(lambda key: jax.random.split(key, n))(keys)
    return [parts[:, i] for i in range(n)]


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Return standard normal noise of `shape` for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


@dataclasses.dataclass(frozen=True)
class Noised:
    """Latents with added noise, for training.

    Attributes:
        latents: Clean latents z_0.
        noise: Noise ε.
        timesteps: Timesteps t.
        noisy_latents: Noisy latents z_t, the input of the network.
    """

    latents: Float[Array, "b h w c"]
    noise: Float[Array, "b h w c"]
    timesteps: Int[Array, " b"]
    noisy_latents: Float[Array, "b h w c"]


def draw_timesteps(
    schedule: Schedule, objective: ObjectiveConfig, keys: Key[Array, " b"]
) -> Int[Array, " b"]:
    """Return a random timestep for each key.

    `timestep_bias_multiplier` makes the noisiest timesteps more frequent.
    """
    count = schedule.num_timesteps
    if objective.timestep_bias_multiplier == 1:
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)
    noisiest = np.arange(1, count + 1) > count * (1 - objective.timestep_bias_portion)
    odds = np.where(noisiest, objective.timestep_bias_multiplier, 1.0)
    return jax.vmap(lambda key: jax.random.categorical(key, np.log(odds)))(keys)


def add_drawn_noise(
    schedule: Schedule,
    objective: ObjectiveConfig,
    latents: Float[Array, "b h w c"],
    noise_keys: Key[Array, " b"],
    offset_keys: Key[Array, " b"],
    time_keys: Key[Array, " b"],
) -> Noised:
    """Choose random noise and a timestep for each example, and add the noise."""
    noise = normal(noise_keys, latents.shape[1:])
    if objective.noise_offset:
        shift = normal(offset_keys, (1, 1, latents.shape[-1]))
        noise = noise + objective.noise_offset * shift
    timesteps = draw_timesteps(schedule, objective, time_keys)
    noisy = add_noise(schedule, latents, noise, timesteps)
    return Noised(latents, noise, timesteps, noisy)


def objective_losses(
    schedule: Schedule,
    objective: ObjectiveConfig,
    output: Float[Array, "b h w c"],
    noised: Noised,
    batch: Batch,
) -> Float[Array, " b"]:
    """Return each example's loss for a network's output.

    Args:
        schedule: Noise schedule, with the prediction type of the output.
        objective: Kind and weights of the loss.
        output: Output of the network for `noised`.
        noised: Input of the network.
        batch: Batch, with a ``loss_mask`` if images are padded.
    """
    losses = errors(
        output,
        target(schedule, noised.latents, noised.noise, noised.timesteps),
        objective.loss,
        latent_mask(batch, noised.latents.shape),
    )
    if objective.min_snr_gamma is None:
        return losses
    gamma = objective.min_snr_gamma
    return losses * min_snr_weights(schedule, noised.timesteps, gamma)


def dropped(keys: Key[Array, " b"], fraction: float) -> Bool[Array, " b"]:
    """Return whether each example loses its condition, True with this probability."""
    return jax.vmap(jax.random.uniform)(keys) < fraction


def latent_mask(batch: Batch, shape: tuple[int, ...]) -> Float[Array, "b h w 1"] | None:
    """Return the fraction of pixels without padding in each latent's patch.

    None means that the batch has no padding.
    """
    if "loss_mask" not in batch:
        return None
    mask = batch["loss_mask"]
    b, h, w = shape[:3]
    patches = mask.reshape(b, h, mask.shape[1] // h, w, mask.shape[2] // w, 1)
    return patches.mean(axis=(2, 4))
