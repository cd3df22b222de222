"""Task autoencoder_kl: train or fine-tune Stable Diffusion's autoencoder.

    L = d(x, D(z)) + w KL(q(z|x) ‖ N(0, 1)),   z ~ q(z|x)                        (1)

Trees: all of ``network`` trains, or only its ``decoder`` and ``post_quant_conv``.

Source: Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, eq. 10 and
appendix B; Rombach et al., 2022, section 3.1 (a small w).
"""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Key

from medjax import trees
from medjax.arrays import Array, Params
from medjax.diffusion.objective import LossKind
from medjax.errors import UserError, check_least
from medjax.models.apply import apply
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.pretrained import Network, load_autoencoder
from medjax.tasks.autoencoder_loss import AutoencoderTask, Coded, autoencoder_weights
from medjax.tasks.base_model import check_fingerprint
from medjax.tasks.interface import NO_BASE, BuiltTask, Checkpoint, TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.random_draws import normal
from medjax.tasks.row import Origins

_DECODER = ("network/decoder", "network/post_quant_conv")
_OF_SHAPE = (
    "block_out_channels",
    "layers_per_block",
    "latent_channels",
    "norm_num_groups",
)


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """Architecture and training of a KL autoencoder.

    Attributes:
        pretrained: Autoencoder to start from: a diffusers folder, hub id or file of an
            autoencoder, or of a Stable Diffusion that contains one. None means random
            weights and the architecture below.
        decoder_only: Whether only the decoder trains. The encoder is then frozen, so
            latents keep their meaning. Requires `pretrained`.
        channels: Number of channels of the images: 1 for grayscale, or 3.
        block_out_channels: Number of channels of each level, from the finest. Each
            level except the last halves the resolution. All must be divisible by
            `norm_num_groups`. Only without `pretrained`.
        layers_per_block: Number of residual blocks per level. Only without
            `pretrained`.
        latent_channels: Number of channels of the latents. Only without `pretrained`.
        norm_num_groups: Number of groups of each group normalisation. Only without
            `pretrained`.
        kl_weight: Weight w of the KL divergence in the loss, at least 0. It
            compares the latents with a standard normal distribution.
        loss: Distance d between images and reconstructions: mse, l1 or smooth_l1.
        dtype: Data type of activations and frozen weights: float32 or bfloat16.
            Trained weights are float32.
    """

    pretrained: str | None = None
    decoder_only: bool = False
    channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    kl_weight: float = 1e-6
    loss: LossKind = "mse"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        """Raise UserError if a value is outside its range, or does not apply."""
        check_least(self, kl_weight=0)
        if self.channels not in (1, 3):
            raise UserError(f"channels={self.channels}: expected 1 or 3")
        if self.decoder_only and self.pretrained is None:
            raise UserError(
                "decoder_only=True: requires a trained encoder. Set pretrained, or "
                "decoder_only=False"
            )
        for name in _OF_SHAPE if self.pretrained is not None else ():
            value = getattr(self, name)
            if value != getattr(AutoencoderKLConfig, name):
                raise UserError(
                    f"{name}={value}: does not apply, because pretrained is set and "
                    "has its own architecture. Remove one of the two"
                )
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise UserError(
                    f"block_out_channels: {width} is not divisible by "
                    f"norm_num_groups={self.norm_num_groups}"
                )


def make_autoencoder_kl_task(inputs: TaskInputs) -> BuiltTask:
    """Build a KL autoencoder with pretrained or random weights.

    Raises:
        UserError: If weights are missing or do not fit.
    """
    config: AutoencoderKLConfig = inputs.model
    dtype = jnp.dtype(config.dtype)
    base = dict(NO_BASE)
    if config.pretrained is None:
        module = autoencoder_kl_module(config)
        weights = module.init_params(inputs.key)
    else:
        network = load_autoencoder(config.pretrained)
        module = AutoencoderKL.from_config(network.config, dtype=dtype)
        if module.in_channels != config.channels:
            raise UserError(
                f"config.model.channels={config.channels}: the autoencoder at "
                f"'{config.pretrained}' has {module.in_channels} channels. Set "
                "config.model.channels to this number"
            )
        weights = network.params
        base = trees.identity(config.pretrained, weights)
    params, frozen = trees.split(
        {"network": weights},
        lambda path: not config.decoder_only or path.startswith(_DECODER),
    )
    return BuiltTask(
        AutoencoderTask(
            module,
            config.channels,
            config.loss,
            {"kl": config.kl_weight},
            functools.partial(_code, module),
        ),
        trees.cast(params, jnp.float32),
        trees.cast(frozen, dtype),
        None,
        base,
    )


def autoencoder_kl_module(config: AutoencoderKLConfig) -> AutoencoderKL:
    """Return the network of a config without pretrained weights."""
    return AutoencoderKL(
        in_channels=config.channels,
        out_channels=config.channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        dtype=jnp.dtype(config.dtype),
    )


def untrained_autoencoder_kl(config: AutoencoderKLConfig) -> AutoencoderKL:
    """Return the network of a config, with or without pretrained weights."""
    if config.pretrained is None:
        return autoencoder_kl_module(config)
    module = load_autoencoder(config.pretrained).module
    assert isinstance(module, AutoencoderKL)
    return module


def trained_autoencoder_kl(
    checkpoint: Checkpoint,
    source: str | None = None,
    autoencoder: TrainedAutoencoder | None = None,
) -> TrainedAutoencoder:
    """Return the autoencoder with its trained weights, float32.

    Args:
        checkpoint: The run's checkpoint.
        source: Current location of the weights that training started from. None means
            the location in training.
        autoencoder: Unused, because the task needs no other autoencoder.

    Raises:
        UserError: If those weights are missing or have changed.
    """
    del autoencoder
    model: AutoencoderKLConfig = checkpoint.model
    weights = trees.cast(checkpoint.params, "float32")
    if model.pretrained is None:
        module = autoencoder_kl_module(dataclasses.replace(model, dtype="float32"))
    else:
        place = checkpoint.base["source"] if source is None else source
        network = load_autoencoder(place)
        check_fingerprint(network.params, checkpoint.base, place)
        assert isinstance(network.module, AutoencoderKL)
        module = network.module
        own = trees.flatten({"network": network.params})
        weights = trees.unflatten(own | trees.flatten(weights))
    weights = autoencoder_weights(weights)
    return TrainedAutoencoder(module, weights, trees.fingerprint(weights))


def autoencoder_kl_origins(model: AutoencoderKLConfig) -> Origins:
    """Return the pretrained weights that training started from."""
    return Origins(model.pretrained)


def kl_network(module: AutoencoderKL, params: Params) -> Network:
    """Return a KL autoencoder as a `Network` with diffusers' `config.json`."""
    levels = len(module.block_out_channels)
    config = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(module.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": module.in_channels,
        "latent_channels": module.latent_channels,
        "layers_per_block": module.layers_per_block,
        "norm_num_groups": module.norm_num_groups,
        "out_channels": module.out_channels,
        "scaling_factor": module.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return Network(module, params, config)


def _code(
    module: AutoencoderKL, weights: Params, images: Array, keys: Key[Array, " b"]
) -> Coded:
    """Encode images to random latents and decode them; see `AutoencoderTask.code`."""
    network = weights["network"]
    mean, logvar = apply(module, network, images, method="encode")
    latents = mean + jnp.exp(0.5 * logvar) * normal(keys, mean.shape[1:])
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)
    decoded = apply(module, network, latents, method="decode")
    return decoded, {"kl": kl.mean(axis=(1, 2, 3))}, {}
