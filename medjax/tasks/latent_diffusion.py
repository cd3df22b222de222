"""Latent diffusion with captions: encode, denoise, decode and sample.

    latents = scaling_factor · VAE(images);   output = U(z_t, t, c_text, C)          (1)

where C is the residuals of the ControlNet, if one is used, times its conditioning
scale.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
2022, section 3.3 (1).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from medjax.arrays import Array, Batch, Params
from medjax.diffusion import samplers
from medjax.diffusion.guidance import guide
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.diffusion.schedule import Schedule
from medjax.models.apply import apply
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.controlnet import ControlNet
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.tasks.random_draws import normal, split


@dataclasses.dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """The networks of a Stable Diffusion. Each call gets their weights.

    Attributes:
        unet: U-Net that denoises.
        vae: Autoencoder.
        text_encoder: Text encoder.
        controlnet: ControlNet, or None.
        schedule: Noise schedule.
        null_text_ids: Tokens of the empty caption.
        only_mid_control: Whether the ControlNet only affects the middle of the U-Net.
    """

    unet: UNet2DCondition
    vae: AutoencoderKL
    text_encoder: CLIPText
    controlnet: ControlNet | None
    schedule: Schedule
    null_text_ids: Int[np.ndarray, " l"]
    only_mid_control: bool = False

    def encode(
        self, nets: Params, batch: Batch, keys: Key[Array, " b"]
    ) -> Float[Array, "b h w z"]:
        """Return random latents of a batch's images, with one key per image.

        Their mean and log-variance come from the batch if it has them, else from the
        autoencoder.
        """
        if "latents_mean" in batch:
            mean, logvar = batch["latents_mean"], batch["latents_logvar"]
        else:
            mean, logvar = self.posterior(nets, batch["images"])
        draw = normal(keys, mean.shape[1:])
        return self.vae.scaling_factor * (mean + jnp.exp(0.5 * logvar) * draw)

    def posterior(
        self, nets: Params, images: Float[Array, "b H W c"]
    ) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
        """Return mean and log-variance of the unscaled latents of images in [-1, 1]."""
        return apply(self.vae, nets["vae"], images, method="encode")

    def decode(
        self, nets: Params, latents: Float[Array, "b h w z"]
    ) -> Float[Array, "b H W c"]:
        """Return the images, clipped to [-1, 1], of scaled latents."""
        latents = latents / self.vae.scaling_factor
        images = apply(self.vae, nets["vae"], latents, method="decode")
        return jnp.clip(images.astype(jnp.float32), -1, 1)

    def embed_text(
        self, nets: Params, text_ids: Int[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """Return the embeddings of captions for the U-Net."""
        return apply(self.text_encoder, nets["text_encoder"], text_ids)

    def denoise(
        self,
        nets: Params,
        noisy_latents: Float[Array, "b h w z"],
        timesteps: Float[Array, " b"] | Int[Array, " b"],
        text_embeddings: Float[Array, "b l d"],
        conditioning_image: Float[Array, "b H W 3"] | None,
        conditioning_scale: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, "b h w z"]:
        """Return the U-Net's output (eq. 1).

        Args:
            nets: Weights by network.
            noisy_latents: Noisy latents z_t.
            timesteps: Timesteps t.
            text_embeddings: Embeddings of the captions.
            conditioning_image: Images in [0, 1]; None without a ControlNet.
            conditioning_scale: Weight of the ControlNet.
        """
        inputs = (noisy_latents, timesteps, text_embeddings)
        down = mid = None
        if self.controlnet is not None:
            down, mid = apply(
                self.controlnet, nets["controlnet"], *inputs, conditioning_image
            )
            if not isinstance(conditioning_scale, float) or conditioning_scale != 1:
                weight = jnp.asarray(conditioning_scale, mid.dtype)
                down, mid = [weight * residual for residual in down], weight * mid
            down = None if self.only_mid_control else down
        return apply(self.unet, nets["unet"], *inputs, down, mid)

    def draw(
        self,
        nets: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        sampling: SamplingConfig,
        size: tuple[int, int],
        frames: int = 1,
    ) -> Float[Array, "n b H W c"]:
        """Sample images in [-1, 1] for captions, and return stages of the process.

        Args:
            nets: Weights by network.
            batch: ``text_ids``; with a ControlNet ``conditioning_image``; with a
                strength below 1 ``images`` to start from. Optional: ``null_text_ids``
                of negative captions, by default empty, and ``noise`` to start from, by
                default random.
            keys: One key per image, for all its random numbers.
            sampling: Sampler, steps and guidance.
            size: Height and width in pixels.
            frames: Largest number of stages to return. The last is the result.

        Raises:
            UserError: If the sampler does not support the settings.
        """
        plan = self.plan(sampling)
        first_key, fresh_key, image_key = split(keys, 3)
        side = self.vae.downsampling
        shape = (size[0] // side, size[1] // side, self.vae.latent_channels)
        noise = batch["noise"] if "noise" in batch else normal(first_key, shape)
        start = plan.noise_scale * noise
        if sampling.strength < 1:
            alpha, sigma = plan.first
            images = self.encode(nets, batch, image_key)
            start = alpha * images.astype(jnp.float32) + sigma * noise

        def fresh(step: Array) -> Array:
            fold = jax.vmap(lambda key: jax.random.fold_in(key, step))
            return normal(fold(fresh_key), shape)

        denoise_fn = self._guided(nets, batch, sampling, len(plan.timesteps))
        stages = samplers.trace(plan, denoise_fn, start, fresh, frames)
        return jax.lax.map(lambda latents: self.decode(nets, latents), stages)

    def plan(self, sampling: SamplingConfig) -> samplers.Plan:
        """Return the plan of the sampler's steps.

        Raises:
            UserError: If the sampler does not support the settings.
        """
        begin = sampling.steps - int(sampling.steps * sampling.strength)
        plan = samplers.make_plan(
            sampling.sampler, self.schedule, sampling.steps, sampling.eta, begin
        )
        # Schedulers clip by default, but latents have no fixed range.
        return dataclasses.replace(plan, clip=None)

    def _guided(
        self, nets: Params, batch: Batch, sampling: SamplingConfig, steps: int
    ) -> samplers.DenoiseFn:
        """Return the denoising function of the sampler, with guidance.

        Captions and negative captions are computed as one batch.
        """
        text = self.embed_text(nets, batch["text_ids"])
        guides = sampling.guidance_scale != 1
        if guides:
            null_ids = batch.get("null_text_ids", jnp.asarray(self.null_text_ids)[None])
            null = self.embed_text(nets, null_ids)
            text = jnp.concatenate([jnp.broadcast_to(null, text.shape), text])
        copies = 1 + guides
        condition = batch.get("conditioning_image")
        if condition is not None:
            condition = jnp.concatenate([condition] * copies)
        weights = jnp.asarray(_control_weights(sampling, steps), jnp.float32)

        def denoise_fn(z: Array, timesteps: Array, step: Array) -> Array:
            output = self.denoise(
                nets,
                jnp.concatenate([z] * copies),
                jnp.concatenate([timesteps] * copies),
                text,
                condition,
                weights[step],
            ).astype(jnp.float32)
            if not guides:
                return output
            without, given = jnp.split(output, 2)
            return guide(
                without, given, sampling.guidance_scale, sampling.guidance_rescale
            )

        return denoise_fn


def _control_weights(sampling: SamplingConfig, steps: int) -> Float[np.ndarray, " s"]:
    """Return the ControlNet's weight at each step, as in diffusers' pipelines."""
    number = np.arange(steps)
    heard = (number / steps >= sampling.control_start) & (
        (number + 1) / steps <= sampling.control_end
    )
    return np.where(heard, sampling.conditioning_scale, 0.0)
