"""VQ-VAE: an autoencoder with a codebook.

    L = d(x, D(z_q)) + w ‖sg[z] − e_k‖² + β ‖z − sg[e_k]‖²                       (1)

Trees: ``network`` trains; ``codebook`` trains by gradient (w = 1), or is part of the
statistics and follows the latents (w = 0; see `medjax.models.codebook`).

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
    """Which VQ-VAE, and how it learns.

    Attributes:
        channels: Of the images: 1 for gray ones, or 3.
        block_out_channels: Widths; each but the last halves the resolution.
        layers_per_block: Residual blocks of a level.
        latent_channels: Of latents and of the codebook's entries.
        mid_layers: Residual blocks in the middle, with self-attention between them.
        attention_heads: Of the self-attention.
        norm_num_groups: Of every norm.
        codebook_size: Entries of the codebook.
        codebook_learning: ema, by following the latents, or gradient.
        codebook_decay: With ema: γ, the old share of the average, in [0, 1).
        codebook_dead_below: With ema: entries used less than this fraction of what
            each would be if all were equal, in [0, 1), are put elsewhere; 0 leaves
            them.
        commitment_weight: β of eq. 1.
        loss: mse, l1 or smooth_l1: d.
        dtype: Of activations; weights are float32.
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
        """Refuse values outside the ranges above."""
        check_least(self, codebook_size=2, commitment_weight=0)
        if self.channels not in (1, 3):
            raise UserError(f"channels is {self.channels}, expected 1 or 3")
        for name in ("codebook_decay", "codebook_dead_below"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UserError(f"{name} is {value}, expected in [0, 1)")
            if self.codebook_learning != "ema" and value != getattr(VQVAEConfig, name):
                raise UserError(
                    f"{name} is {value}, but codebook_learning is "
                    f"{self.codebook_learning}, which has none; expected ema"
                )
        for width in self.block_out_channels:
            if width % self.norm_num_groups or width % self.attention_heads:
                raise UserError(
                    f"block_out_channels has {width}, which is not divisible by "
                    f"norm_num_groups={self.norm_num_groups} and "
                    f"attention_heads={self.attention_heads}"
                )


def make_vq_vae_task(inputs: TaskInputs) -> BuiltTask:
    """Draw a VQ-VAE's weights."""
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
        source: Not used: a VQ-VAE has no base.
        autoencoder: None: it stands on no other.
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
    """Return what a VQ-VAE makes of images; see `AutoencoderTask.code`."""
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
    """Return the codebook after a batch, and how much of it the batch used."""
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
