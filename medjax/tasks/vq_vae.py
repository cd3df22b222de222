"""Task vq_vae: train an autoencoder with a codebook.

    L = d(x, D(z_q)) + w ‖sg[z] − e_k‖² + β ‖z − sg[e_k]‖²                       (1)

where sg passes no gradient. Trees: ``network`` trains. ``codebook`` trains by gradient
(w = 1), or belongs to the statistics and follows the latents (w = 0; see
`medjax.models.codebook`).

Source: van den Oord et al., 2017, eq. 3.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Key

from medjax import trees
from medjax.arrays import Array, Params
from medjax.diffusion.objective import LossKind, errors
from medjax.errors import UserError, check_least
from medjax.models import codebook
from medjax.models.apply import apply
from medjax.models.vq_vae import VQVAE, nearest_codes, straight_through
from medjax.tasks.autoencoder_loss import (
    AutoencoderTask,
    Coded,
    Followed,
    autoencoder_weights,
)
from medjax.tasks.interface import NO_BASE, BuiltTask, Checkpoint, TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder


@dataclasses.dataclass(frozen=True)
class VQVAEConfig:
    """Architecture and training of a VQ-VAE.

    Attributes:
        channels: Number of channels of the images: 1 for grayscale, or 3.
        block_out_channels: Number of channels of each level, from the finest. Each
            level except the last halves the resolution. All must be divisible by
            `norm_num_groups` and by `attention_heads`.
        layers_per_block: Number of residual blocks per level.
        latent_channels: Number of channels of the latents and of the codebook's
            entries.
        mid_layers: Number of residual blocks at the lowest resolution, with
            self-attention between them.
        attention_heads: Number of heads of the self-attention.
        norm_num_groups: Number of groups of each group normalisation.
        codebook_size: Number of entries of the codebook, at least 2.
        codebook_learning: How the codebook learns: ema, as a moving average of the
            latents nearest to each entry, or gradient.
        codebook_decay: Decay γ of the moving average, in [0, 1). Only for
            codebook_learning=ema.
        codebook_dead_below: Fraction of an equal share of the latents, in [0, 1). An
            entry that gets less than this fraction is moved to a place with many
            latents. 0 means that no entry is moved. Only for codebook_learning=ema.
        commitment_weight: Weight β of the commitment loss, at least 0. This loss pulls
            latents to their nearest entries.
        loss: Distance d between images and reconstructions: mse, l1 or smooth_l1.
        dtype: Data type of the activations: float32 or bfloat16. Weights are float32.
    """

    channels: int = 1
    block_out_channels: tuple[int, ...] = (64, 128, 256, 256)
    layers_per_block: int = 2
    latent_channels: int = 4
    mid_layers: int = 3
    attention_heads: int = 4
    norm_num_groups: int = 32
    codebook_size: int = 1024
    codebook_learning: Literal["ema", "gradient"] = "ema"
    codebook_decay: float = 0.99
    codebook_dead_below: float = 0.03
    commitment_weight: float = 0.25
    loss: LossKind = "mse"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        """Raise UserError if a value is outside its range, or does not apply."""
        check_least(self, codebook_size=2, commitment_weight=0)
        if self.channels not in (1, 3):
            raise UserError(f"channels={self.channels}: expected 1 or 3")
        for name in ("codebook_decay", "codebook_dead_below"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UserError(f"{name}={value}: expected a number in [0, 1)")
            if self.codebook_learning != "ema" and value != getattr(VQVAEConfig, name):
                raise UserError(
                    f"{name}={value}: does not apply to codebook_learning="
                    f"{self.codebook_learning}. Remove it, or set "
                    "codebook_learning=ema"
                )
        for width in self.block_out_channels:
            if width % self.norm_num_groups or width % self.attention_heads:
                raise UserError(
                    f"block_out_channels: {width} is not divisible by "
                    f"norm_num_groups={self.norm_num_groups} and "
                    f"attention_heads={self.attention_heads}"
                )


def make_vq_vae_task(inputs: TaskInputs) -> BuiltTask:
    """Build a VQ-VAE with random weights."""
    config: VQVAEConfig = inputs.model
    module = vq_vae_module(config)
    by_gradient = config.codebook_learning == "gradient"
    network, codes = jax.random.split(inputs.key)
    params = {"network": module.init_params(network)}
    book = codebook.init_codebook(codes, config.codebook_size, config.latent_channels)
    if by_gradient:
        params["codebook"] = {"codes": book["codes"]}
    task = AutoencoderTask(
        module,
        config.channels,
        config.loss,
        {
            "commitment": config.commitment_weight,
            **({"codebook": 1.0} if by_gradient else {}),
        },
        functools.partial(_code, module, by_gradient),
        functools.partial(_follow, config),
    )
    statistics = {} if by_gradient else {"codebook": book}
    return BuiltTask(task, params, {}, None, NO_BASE, statistics)


def trained_vq_vae(
    checkpoint: Checkpoint,
    source: str | None = None,
    autoencoder: TrainedAutoencoder | None = None,
) -> TrainedAutoencoder:
    """Return the VQ-VAE with its trained weights, float32.

    Args:
        checkpoint: The run's checkpoint.
        source: Unused, because a VQ-VAE has no base model.
        autoencoder: Unused, because a VQ-VAE needs no other autoencoder.
    """
    del source, autoencoder
    module = vq_vae_module(dataclasses.replace(checkpoint.model, dtype="float32"))
    weights = autoencoder_weights(trees.cast(checkpoint.params, "float32"))
    return TrainedAutoencoder(module, weights, trees.fingerprint(weights))


def _code(
    module: VQVAE,
    by_gradient: bool,
    weights: Params,
    images: Array,
    keys: Key[Array, " b"],
) -> Coded:
    """Encode, quantise and decode images; see `AutoencoderTask.code`."""
    del keys
    network, stop = weights["network"], jax.lax.stop_gradient
    codes = weights["codebook"]["codes"]
    latents = apply(module, network, images, method="encode")
    numbers = nearest_codes(stop(latents), stop(codes))
    chosen = codes[numbers]
    parts = {"commitment": errors(latents, stop(chosen))}
    if by_gradient:
        parts["codebook"] = errors(chosen, stop(latents))
    quantized = straight_through(latents, stop(chosen))
    decoded = apply(module, network, quantized, method="decode")
    observed = codebook.observe(stop(latents), numbers, stop(codes))
    return decoded, parts, {"codebook": observed}


def _follow(
    config: VQVAEConfig, statistics: Params, observed: Params, key: Key[Array, ""]
) -> Followed:
    """Return the codebook after a batch, and metrics of how much of it was used."""
    said = codebook.usage(observed["codebook"]["share"])
    if not statistics:
        return statistics, said
    followed = codebook.follow(
        statistics["codebook"],
        observed["codebook"],
        key,
        config.codebook_decay,
        config.codebook_dead_below,
    )
    return {"codebook": followed}, said


def vq_vae_module(config: VQVAEConfig) -> VQVAE:
    """Return the network of a configuration."""
    return VQVAE(
        channels=config.channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        mid_layers=config.mid_layers,
        attention_heads=config.attention_heads,
        norm_num_groups=config.norm_num_groups,
        dtype=jnp.dtype(config.dtype),
    )
