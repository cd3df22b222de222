"""ControlNet: teach a frozen Stable Diffusion to follow a picture.

    L = w(t) ‖target − U(z_t, t, c_text, ControlNet(z_t, t, c_text, c_image))‖²    (1)

Trees: ``controlnet`` trains; ``unet``, ``vae`` and ``text_encoder`` are frozen, except
for the part of the U-Net that `ControlNetConfig` unlocks.

Source: Zhang et al., 2023, eq. 6 (1) and section 3.2 (sd_locked, only_mid_control).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from medjax import trees
from medjax.arrays import Array, Batch, Params
from medjax.data.tokens import tokenize
from medjax.diffusion import samplers
from medjax.diffusion.objective import (
    DiffusionConfig,
    min_snr_weights,
    squared_error,
)
from medjax.diffusion.schedule import Schedule, add_noise, make_schedule, target
from medjax.meshes import gather_params
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.controlnet import ControlNet, config_from_unet
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.pretrained import StableDiffusion, load_controlnet, load_stable_diffusion
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.tasks.base import Assembly
from medjax.tasks.fit import check_base, check_image_size

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
        unet: Network.
        controlnet: Network.
        vae: Network.
        text_encoder: Network.
        schedule: Of the noise.
        null_text_ids: The empty caption's tokens.
        diffusion: What is asked of the networks.
        only_mid_control: See `ControlNetConfig`.
    """

    unet: UNet2DCondition
    controlnet: ControlNet
    vae: AutoencoderKL
    text_encoder: CLIPText
    schedule: Schedule
    null_text_ids: Int[np.ndarray, " l"]
    diffusion: DiffusionConfig
    only_mid_control: bool

    def check_image_size(self, size: int) -> None:
        """Raise UserError unless the networks can halve the images as they do."""
        check_image_size(size, self.unet, self.vae)

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
        posterior, noise_key, offset, time, drop = _split(keys, 5)
        latents = self._encode(nets, batch["images"], posterior)
        noise = _normal(noise_key, latents.shape[1:])
        if self.diffusion.noise_offset:
            shift = _normal(offset, (1, 1, latents.shape[-1]))
            noise = noise + self.diffusion.noise_offset * shift
        timesteps = jax.vmap(
            lambda k: jax.random.randint(k, (), 0, self.schedule.num_timesteps)
        )(time)
        text_ids = batch["text_ids"]
        if train and self.diffusion.caption_dropout:
            dropped = jax.vmap(jax.random.uniform)(drop)
            dropped = dropped < self.diffusion.caption_dropout
            text_ids = jnp.where(dropped[:, None], self.null_text_ids, text_ids)

        denoise_fn = self._denoise_fn(
            nets, self._embed_text(nets, text_ids), batch["conditioning_image"]
        )
        noisy_latents = add_noise(self.schedule, latents, noise, timesteps)
        error = squared_error(
            denoise_fn(noisy_latents, timesteps),
            target(self.schedule, latents, noise, timesteps),
            _latent_mask(batch, latents.shape),
        )
        if self.diffusion.min_snr_gamma is None:
            return error
        gamma = self.diffusion.min_snr_gamma
        return error * min_snr_weights(self.schedule, timesteps, gamma)

    def sample(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        steps: int,
        guidance_scale: float,
    ) -> Float[Array, "b H W c"]:
        """Return images for the batch's conditions and captions, by DDIM."""
        nets = gather_params(trees.merge(params, frozen))
        condition = batch["conditioning_image"]
        text = self._embed_text(nets, batch["text_ids"])
        null = self._embed_text(nets, jnp.asarray(self.null_text_ids)[None])
        denoise_both = self._denoise_fn(
            nets,
            jnp.concatenate([jnp.broadcast_to(null, text.shape), text]),
            jnp.concatenate([condition, condition]),
        )

        def denoise_fn(noisy_latents: Array, timesteps: Array) -> Array:
            output = denoise_both(
                jnp.concatenate([noisy_latents, noisy_latents]),
                jnp.concatenate([timesteps, timesteps]),
            )
            without, given = jnp.split(output.astype(jnp.float32), 2)
            return without + guidance_scale * (given - without)

        side = self.controlnet.downsampling
        shape = (condition.shape[1] // side, condition.shape[2] // side)
        noise = _normal(keys, (*shape, self.vae.latent_channels))
        latents = samplers.ddim(denoise_fn, self.schedule, noise, steps)
        images = _apply(
            self.vae, nets["vae"], latents / self.vae.scaling_factor, method="decode"
        )
        return jnp.clip(images.astype(jnp.float32), -1, 1)

    def _encode(
        self, nets: Params, images: Array, keys: Key[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        mean, logvar = _apply(self.vae, nets["vae"], images, method="encode")
        draw = _normal(keys, mean.shape[1:])
        return self.vae.scaling_factor * (mean + jnp.exp(0.5 * logvar) * draw)

    def _embed_text(self, nets: Params, text_ids: Array) -> Float[Array, "b l d"]:
        return _apply(self.text_encoder, nets["text_encoder"], text_ids)

    def _denoise_fn(
        self, nets: Params, text_embeddings: Array, conditioning_image: Array
    ) -> samplers.DenoiseFn:
        def denoise_fn(noisy_latents: Array, timesteps: Array) -> Array:
            down, mid = _apply(
                self.controlnet,
                nets["controlnet"],
                noisy_latents,
                timesteps,
                text_embeddings,
                conditioning_image,
            )
            return _apply(
                self.unet,
                nets["unet"],
                noisy_latents,
                timesteps,
                text_embeddings,
                None if self.only_mid_control else down,
                mid,
            )

        return denoise_fn


def _apply(module: nn.Module, params: Params, *inputs: Any, **options: Any) -> Any:
    return module.apply({"params": params}, *inputs, **options)


def _split(keys: Key[Array, " b"], n: int) -> list[Key[Array, " b"]]:
    parts = jax.vmap(lambda key: jax.random.split(key, n))(keys)
    return [parts[:, i] for i in range(n)]


def _normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


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
    if model.pretrained:
        sd = load_stable_diffusion(model.pretrained, route=model.route)
    else:
        sd = tiny_stable_diffusion()
    options = {"dtype": jnp.dtype(model.dtype), "remat": model.remat}
    config, weights = _controlnet(model, sd, key)
    networks = {"unet": sd.unet, "vae": sd.vae, "text_encoder": sd.text_encoder}
    base = {name: network.params for name, network in networks.items()}

    task = ControlNetTask(
        unet=UNet2DCondition.from_config(sd.unet.config, **options),
        controlnet=ControlNet.from_config(config, **options),
        vae=AutoencoderKL.from_config(sd.vae.config, dtype=options["dtype"]),
        text_encoder=CLIPText.from_config(
            sd.text_encoder.config, dtype=options["dtype"]
        ),
        schedule=make_schedule(sd.schedule.config, diffusion.prediction_type),
        null_text_ids=tokenize(sd.tokenizer, "")[0],
        diffusion=diffusion,
        only_mid_control=model.only_mid_control,
    )
    tokens = len(sd.tokenizer)
    check_base(model.pretrained, task.unet, task.vae, task.text_encoder, tokens)
    params, frozen = trees.split(
        base | {"controlnet": weights}, lambda path: _trains(path, model)
    )
    return Assembly(
        task,
        params=trees.cast(params, jnp.float32),
        frozen=trees.cast(frozen, options["dtype"]),
        tokenizer=sd.tokenizer,
        base={"source": model.pretrained, "fingerprint": trees.fingerprint(base)},
    )


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
