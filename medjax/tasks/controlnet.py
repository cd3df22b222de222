"""ControlNet: teach a frozen Stable Diffusion to follow a picture.

    L = w(t) ‖target − U(z_t, t, c_text, ControlNet(z_t, t, c_text, c_image))‖²    (1)

Trees: ``controlnet`` trains; ``unet``, ``vae`` and ``text_encoder`` are frozen, except
for the part of the U-Net that `ControlNetConfig` unlocks.

Source: Zhang et al., 2023, eq. 6 (1) and section 3.2 (sd_locked, only_mid_control).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from medjax import trees
from medjax.arrays import Array, Batch, Params
from medjax.data.tokens import tokenize
from medjax.diffusion.objective import (
    DiffusionConfig,
    min_snr_weights,
    squared_error,
)
from medjax.diffusion.schedule import add_noise, make_schedule, target
from medjax.meshes import gather_params
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.controlnet import ControlNet, config_from_unet
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.pretrained import StableDiffusion, load_controlnet, load_stable_diffusion
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.tasks.base import Assembly
from medjax.tasks.fit import check_base, check_image_size
from medjax.tasks.latent_diffusion import (
    LatentDiffusion,
    SamplingConfig,
    normal,
    split,
)

# What `sd_locked=False` trains: the half of the U-Net that ControlNet does not copy.
DECODER = ("up_blocks_", "conv_norm_out", "conv_out")


@dataclasses.dataclass(frozen=True)
class ControlNetConfig:
    """Which networks, and which part of them trains.

    Attributes:
        pretrained: Stable Diffusion: a diffusers folder, a hub id, or a file with the
            original names (.safetensors, .ckpt, …). Empty: a tiny random one.
        controlnet: ControlNet to start from: a folder, hub id or file, which may be a
            whole checkpoint. None: a copy of the U-Net's encoder.
        route: How weights are read: auto, flax-pipelines or safetensors.
        sd_locked: Whether the U-Net's decoder stays as it is.
        train_unet: Whether the whole U-Net trains too (for a base that is not trained).
        only_mid_control: Whether the ControlNet reaches the U-Net's middle only.
        dtype: Of frozen weights and activations; trained weights are float32.
        remat: Whether activations are computed again for the gradient, to save memory.
    """

    pretrained: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    controlnet: str | None = None
    route: Literal["auto", "flax-pipelines", "safetensors"] = "auto"
    sd_locked: bool = True
    train_unet: bool = False
    only_mid_control: bool = False
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ControlNetTask:
    """Loss and samples of a ControlNet (eq. 1). See `medjax.tasks.Task`.

    Attributes:
        model: Its networks.
        diffusion: What is asked of them.
    """

    model: LatentDiffusion
    diffusion: DiffusionConfig

    def check_image_size(self, size: int) -> None:
        """Raise UserError unless the networks can halve the images as they do."""
        check_image_size(size, self.model.unet, self.model.vae)

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        train: bool,
    ) -> Float[Array, " b"]:
        """Return each example's loss (eq. 1)."""
        nets = gather_params(trees.merge(params, frozen))
        model, schedule = self.model, self.model.schedule
        posterior, noise_key, offset, time, drop = split(keys, 5)
        latents = model.encode(nets, batch["images"], posterior)
        noise = normal(noise_key, latents.shape[1:])
        if self.diffusion.noise_offset:
            shift = normal(offset, (1, 1, latents.shape[-1]))
            noise = noise + self.diffusion.noise_offset * shift
        timesteps = jax.vmap(
            lambda k: jax.random.randint(k, (), 0, schedule.num_timesteps)
        )(time)
        text_ids = batch["text_ids"]
        if train and self.diffusion.caption_dropout:
            dropped = jax.vmap(jax.random.uniform)(drop)
            dropped = dropped < self.diffusion.caption_dropout
            text_ids = jnp.where(dropped[:, None], model.null_text_ids, text_ids)

        output = model.denoise(
            nets,
            add_noise(schedule, latents, noise, timesteps),
            timesteps,
            model.embed_text(nets, text_ids),
            batch["conditioning_image"],
        )
        error = squared_error(
            output,
            target(schedule, latents, noise, timesteps),
            _latent_mask(batch, latents.shape),
        )
        if self.diffusion.min_snr_gamma is None:
            return error
        gamma = self.diffusion.min_snr_gamma
        return error * min_snr_weights(schedule, timesteps, gamma)

    def sample(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        sampling: SamplingConfig,
    ) -> Float[Array, "b H W c"]:
        """Return images for the batch's conditions and captions."""
        nets = gather_params(trees.merge(params, frozen))
        height, width = batch["conditioning_image"].shape[1:3]
        return self.model.sample(nets, batch, keys, sampling, (height, width))


def _latent_mask(
    batch: Batch, shape: tuple[int, ...]
) -> Float[Array, "b h w 1"] | None:
    """Return how much of each latent's patch of pixels is real, or None for all."""
    if "loss_mask" not in batch:
        return None
    mask = batch["loss_mask"]
    b, h, w = shape[:3]
    patches = mask.reshape(b, h, mask.shape[1] // h, w, mask.shape[2] // w, 1)
    return patches.mean(axis=(2, 4))


def make_controlnet_task(
    model: ControlNetConfig, diffusion: DiffusionConfig, key: Array
) -> Assembly:
    """Load the networks, and divide their weights in trained and frozen.

    Args:
        model: Which networks, and which part trains.
        diffusion: What is asked of them.
        key: For the parts of a new ControlNet that are drawn.

    Raises:
        UserError: If weights are not found or do not fit.
    """
    sd = load_base(model.pretrained, model.route)
    options = {"dtype": jnp.dtype(model.dtype), "remat": model.remat}
    config, weights = _controlnet(model, sd, key)
    base = base_weights(sd)

    networks = LatentDiffusion(
        unet=UNet2DCondition.from_config(sd.unet.config, **options),
        vae=AutoencoderKL.from_config(sd.vae.config, dtype=options["dtype"]),
        text_encoder=CLIPText.from_config(
            sd.text_encoder.config, dtype=options["dtype"]
        ),
        controlnet=ControlNet.from_config(config, **options),
        schedule=make_schedule(sd.schedule.config, diffusion.prediction_type),
        null_text_ids=tokenize(sd.tokenizer, "")[0],
        only_mid_control=model.only_mid_control,
    )
    check_base(
        f"config.model.pretrained={model.pretrained}",
        networks.unet,
        networks.vae,
        networks.text_encoder,
        len(sd.tokenizer),
    )
    params, frozen = trees.split(
        base | {"controlnet": weights}, lambda path: _trains(path, model)
    )
    return Assembly(
        ControlNetTask(networks, diffusion),
        params=trees.cast(params, jnp.float32),
        frozen=trees.cast(frozen, options["dtype"]),
        tokenizer=sd.tokenizer,
        base={"source": model.pretrained, "fingerprint": trees.fingerprint(base)},
    )


def load_base(source: str, route: str = "auto") -> StableDiffusion:
    """Return the Stable Diffusion that a run stands on, the tiny one for ""."""
    return (
        load_stable_diffusion(source, route=route)
        if source
        else tiny_stable_diffusion()
    )


def base_weights(sd: StableDiffusion) -> Params:
    """Return the weights by network; a run knows its base by their fingerprint."""
    parts = {"unet": sd.unet, "vae": sd.vae, "text_encoder": sd.text_encoder}
    return {name: part.params for name, part in parts.items()}


def _controlnet(
    model: ControlNetConfig, sd: StableDiffusion, key: Array
) -> tuple[Mapping[str, Any], Params]:
    """Return the configuration and weights that the ControlNet starts from."""
    if model.controlnet is not None:
        network = load_controlnet(model.controlnet, route=model.route)
        network.module.check_fits(sd.unet.module, sd.vae.module.downsampling)
        return network.config, network.params
    config = config_from_unet(sd.unet.config, sd.vae.module.downsampling)
    return config, ControlNet.from_config(config).init_from_unet(sd.unet.params, key)


def _trains(path: str, model: ControlNetConfig) -> bool:
    network, _, rest = path.partition("/")
    if network == "unet":
        return model.train_unet or (not model.sd_locked and rest.startswith(DECODER))
    return network == "controlnet"
