"""Loss and samples of latent diffusion with captions, and optionally a ControlNet.

    L = w(t) d(target, U(z_t, t, c_text, C(z_t, t, c_text, c_image)))    (1)

where C is the residuals of the ControlNet, if one is used.

Source: Rombach et al., 2022, eq. 3; Zhang et al., 2023, eq. 6 (ControlNet).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Bool, Float, Key

from medjax import trees
from medjax.arrays import Array, Batch, Params
from medjax.data.tokens import tokenize
from medjax.diffusion.objective import DiffusionConfig, check_objective
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.diffusion.schedule import make_schedule
from medjax.errors import UserError
from medjax.meshes import gather_params
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.controlnet import ControlNet
from medjax.models.lora import is_adapter
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.pretrained import StableDiffusion
from medjax.tasks.adapters import (
    NETWORKS,
    AdapterConfig,
    draw_adapters,
    with_adapters,
)
from medjax.tasks.base_model import base_weights
from medjax.tasks.interface import GENERATED, BuiltTask, Outcome, TaskInputs
from medjax.tasks.latent_diffusion import LatentDiffusion
from medjax.tasks.random_draws import add_drawn_noise, dropped, objective_losses, split
from medjax.tasks.shape_checks import check_base, check_image_size

# Their layers gather their own kernels, unlike those of the autoencoder.
GATHERING = ("unet", "controlnet", "text_encoder")


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """The base model: the Stable Diffusion that training starts from.

    Attributes:
        pretrained: Base model: a diffusers folder, a hub id, or a single file with the
            original names of weights (.safetensors, .ckpt, …). "phantom-sd" is the
            small model of computed chest X-rays that comes with medjax. "" is a tiny
            model with random weights.
        vae: KL autoencoder that replaces the one of the base model: an export of a run
            of task autoencoder_kl, or another folder, hub id or file. None means the
            autoencoder of the base model.
        route: How folders of pretrained weights are read: safetensors reads the files
            directly, flax-pipelines uses diffusers' Flax pipelines, and auto uses
            safetensors if such files exist. Single files ignore it.
        dtype: Data type of frozen weights and activations: float32 or bfloat16. Trained
            weights are float32.
        remat: What each block keeps for its gradient. none keeps everything; attention
            keeps the results of long attention on a TPU, and full keeps nothing:
            they take less memory but more time.
        cache_latents: Whether to encode each training image and each caption only once,
            before training, and keep the results on disk. Captions are kept if the text
            encoder is frozen.
        attention: How attention is computed: plain, fused or splash (on a TPU), cudnn
            (on a GPU in half precision), or auto, which chooses by platform and length.
    """

    pretrained: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    vae: str | None = None
    route: Literal["auto", "flax-pipelines", "safetensors"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "attention", "full"] = "none"
    cache_latents: bool = False
    attention: Literal["auto", "plain", "fused", "splash", "cudnn"] = "auto"

    @property
    def adapters(self) -> dict[str, AdapterConfig]:
        """Adapters that train, by name of the network."""
        return {}


def check_cached_latents(config: Any) -> None:
    """Check that the latents of a run's images can be cached.

    Args:
        config: The run's config.

    Raises:
        UserError: If images are padded, because the mask of the padding is not stored.
    """
    if config.model.cache_latents and config.data.resize == "letterbox":
        raise UserError(
            "config.data.resize=letterbox: config.model.cache_latents cannot store the "
            "mask of the padding. Set another config.data.resize, or "
            "config.model.cache_latents=False"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionedTask:
    """Loss and samples of a Stable Diffusion (eq. 1). See `medjax.tasks.Task`.

    The weights in `params` train, all others are frozen.

    Attributes:
        model: The networks.
        diffusion: The training objective.
        adapters: Configs of the adapters, by name of the network.
    """

    model: LatentDiffusion
    diffusion: DiffusionConfig
    adapters: Mapping[str, AdapterConfig] = dataclasses.field(default_factory=dict)

    def check(self, size: int, sampling: SamplingConfig | None) -> None:
        """Raise UserError if objective, size or sampler do not fit the networks."""
        assert sampling is not None
        check_objective(self.model.schedule, self.diffusion)
        self.model.plan(sampling)
        unet = self.model.unet
        levels = len(unet.block_out_channels)
        check_image_size(size, self.model.vae.downsampling, 2 ** (levels - 1))

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        train: bool,
    ) -> Outcome:
        """Return each example's loss (eq. 1)."""
        posterior, noise, offset, time, drop, *dropouts = split(keys, 7)
        own = dropouts if train else ()
        nets = self._nets(params, frozen, own, GATHERING)
        model = self.model
        latents = model.encode(nets, batch, posterior)
        noised = add_drawn_noise(
            model.schedule, self.diffusion, latents, noise, offset, time
        )
        rate = self.diffusion.caption_dropout if train else 0.0
        output = model.denoise(
            nets,
            noised.noisy_latents,
            noised.timesteps,
            self._text_embeddings(nets, batch, dropped(drop, rate) if rate else None),
            batch.get("conditioning_image"),
        )
        return Outcome(
            objective_losses(model.schedule, self.diffusion, output, noised, batch)
        )

    def _text_embeddings(
        self, nets: Params, batch: Batch, without: Bool[Array, " b"] | None
    ) -> Float[Array, "b l d"]:
        """Return the captions' embeddings; `without` tells which captions are empty."""
        model, null_ids = self.model, jnp.asarray(self.model.null_text_ids)
        if "text_embeddings" not in batch:
            text_ids = batch["text_ids"]
            if without is not None:
                text_ids = jnp.where(without[:, None], null_ids, text_ids)
            return model.embed_text(nets, text_ids)
        text = batch["text_embeddings"].astype(model.unet.dtype)
        if without is None:
            return text
        null = model.embed_text(nets, null_ids[None])
        return jnp.where(without[:, None, None], null, text)

    def follow(
        self, statistics: Params, observed: Params, key: Key[Array, ""]
    ) -> tuple[Params, dict[str, Float[Array, ""]]]:
        """Return the statistics (none, or the latents' deviation) unchanged."""
        del observed, key
        return statistics, {}

    def sample(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        sampling: SamplingConfig | None,
    ) -> dict[str, Float[Array, "b H W c"]]:
        """Return the conditions, the images sampled from them, and the real images."""
        assert sampling is not None
        nets = self._nets(params, frozen)
        _, height, width, _ = batch["images"].shape
        images = self.model.draw(nets, batch, keys, sampling, (height, width))
        columns = {GENERATED: images[-1], "target": batch["images"]}
        if "conditioning_image" not in batch:
            return columns
        return {"condition": 2 * batch["conditioning_image"] - 1, **columns}

    def _nets(
        self,
        params: Params,
        frozen: Params,
        keys: Sequence[Key[Array, " b"]] = (),
        but: Sequence[str] = (),
    ) -> Params:
        """Return all weights by network; `keys` are for the dropout of adapters.

        `but` names networks whose kernels are not gathered here; see `gather_params`.
        """
        nets = gather_params(trees.merge(params, frozen), but)
        own = dict(zip(NETWORKS, keys, strict=False))
        return nets | {
            name: with_adapters(nets[name], config, own.get(name))
            for name, config in self.adapters.items()
        }


def assemble_captioned(
    sd: StableDiffusion,
    inputs: TaskInputs,
    trains: Callable[[str], bool],
    only_mid_control: bool = False,
) -> BuiltTask:
    """Build a task from a Stable Diffusion, with trained and frozen weights.

    Adapters in the config get first values, and train.

    Args:
        sd: Networks and weights. Its ControlNet does not belong to the base model.
        inputs: The configuration.
        trains: Returns whether the weight at a path (``unet/conv_in/kernel``) trains.
        only_mid_control: Whether a ControlNet only affects the middle of the U-Net.

    Raises:
        UserError: If the networks do not fit each other.
    """
    model: BaseConfig = inputs.model
    dtype = jnp.dtype(model.dtype)
    options = {"dtype": dtype, "remat": model.remat, "attention": model.attention}
    networks = LatentDiffusion(
        unet=UNet2DCondition.from_config(sd.unet.config, **options),
        vae=AutoencoderKL.from_config(sd.vae.config, dtype=dtype),
        text_encoder=CLIPText.from_config(sd.text_encoder.config, dtype=dtype),
        controlnet=ControlNet.from_config(sd.controlnet.config, **options)
        if sd.controlnet
        else None,
        schedule=make_schedule(sd.schedule.config, inputs.diffusion.prediction_type),
        null_text_ids=tokenize(sd.tokenizer, "")[0],
        only_mid_control=only_mid_control,
    )
    check_base(
        f"config.model.pretrained={model.pretrained}"
        + (f" with config.model.vae={model.vae}" if model.vae else ""),
        networks.unet,
        networks.vae,
        networks.text_encoder,
        len(sd.tokenizer),
    )
    base = base_weights(sd)
    control = {"controlnet": sd.controlnet.params} if sd.controlnet else {}
    configs = model.adapters
    adapters = {
        name: draw_adapters(name, base[name], config, inputs.key)
        for name, config in configs.items()
    }
    params, frozen = trees.split(
        trees.merge(base | control, adapters),
        lambda path: is_adapter(path) or trains(path),
    )
    return BuiltTask(
        CaptionedTask(networks, inputs.diffusion, configs),
        params=trees.cast(params, jnp.float32),
        frozen=trees.cast(frozen, dtype),
        tokenizer=sd.tokenizer,
        base=trees.identity(model.pretrained, base),
        posterior=networks.posterior if model.cache_latents else None,
        embed_text=networks.embed_text
        if model.cache_latents and "text_encoder" not in params
        else None,
    )
