"""Loss and samples of diffusion without captions, of pixels or of latents.

    L = w(t) d(target, U(z_t, t, y)),   z_0 = x, or (E(x) − mean) / deviation      (1)

where y is the class of the image, if classes are used.

Source: Ho et al., 2020, eq. 14; Rombach et al., 2022, eq. 2 (latents); Ho and Salimans,
2022, algorithm 1 (classes, dropped at random).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from medjax import trees
from medjax.arrays import Array, Batch, Params
from medjax.diffusion import samplers
from medjax.diffusion.guidance import guide
from medjax.diffusion.objective import ScheduledDiffusionConfig, check_objective
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.diffusion.schedule import Schedule
from medjax.errors import UserError
from medjax.meshes import gather_params
from medjax.models.apply import apply
from medjax.models.conv_unet import ConvUNet
from medjax.models.unet_2d import UNet2D
from medjax.tasks import latent_scaling
from medjax.tasks.drawing import Drawing, Request, check_size
from medjax.tasks.interface import GENERATED, Outcome
from medjax.tasks.random_draws import (
    add_drawn_noise,
    dropped,
    normal,
    objective_losses,
    split,
)
from medjax.tasks.shape_checks import check_image_size


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDiffusion:
    """Loss and samples (eq. 1). See `medjax.tasks.Task`.

    Attributes:
        unet: U-Net that denoises.
        autoencoder: Network of the autoencoder. None means diffusion of pixels.
        channels: Number of channels of the images.
        diffusion: Training objective.
        schedule: Noise schedule.
    """

    unet: UNet2D | ConvUNet
    autoencoder: Any
    channels: int
    diffusion: ScheduledDiffusionConfig
    schedule: Schedule

    def check(self, size: int, sampling: SamplingConfig | None) -> None:
        """Raise UserError if objective, size or sampler do not fit the networks."""
        assert sampling is not None
        check_objective(self.schedule, self.diffusion)
        self.plan(sampling)
        latents = self.autoencoder.downsampling if self.autoencoder else 1
        check_image_size(size, latents, self.unet.downsampling)

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        train: bool,
    ) -> Outcome:
        """Return each example's loss (eq. 1)."""
        # A ConvUNet has layers of flax, which do not gather their kernels.
        gathering = ("unet",) if isinstance(self.unet, UNet2D) else ()
        nets = gather_params(trees.merge(params, frozen), gathering)
        posterior, noise, offset, time, drop = split(keys, 5)
        latents = self.encode(nets, batch["images"], posterior)
        noised = add_drawn_noise(
            self.schedule, self.diffusion, latents, noise, offset, time
        )
        labels = batch.get("labels")
        if train and labels is not None and self.diffusion.label_dropout:
            without = dropped(drop, self.diffusion.label_dropout)
            labels = jnp.where(without, self.unet.num_classes, labels)
        output, observed = self._denoise(
            nets, noised.noisy_latents, noised.timesteps, labels, train
        )
        losses = objective_losses(self.schedule, self.diffusion, output, noised, batch)
        return Outcome(losses, observed=observed)

    def follow(
        self, statistics: Params, observed: Params, key: Key[Array, ""]
    ) -> tuple[Params, dict[str, Float[Array, ""]]]:
        """Return the statistics with new running averages; the rest is unchanged."""
        del key
        return {**statistics, **observed}, {}

    def encode(
        self, nets: Params, images: Float[Array, "b H W c"], keys: Key[Array, " b"]
    ) -> Float[Array, "b h w d"]:
        """Return z_0 of images in [-1, 1]: the images, or their normalised latents."""
        images = latent_scaling.with_channels(images, self.channels)
        if self.autoencoder is None:
            return images
        latents = latent_scaling.encode(
            self.autoencoder, nets["autoencoder"], images, keys
        )
        return (latents - nets["latents"]["mean"]) / nets["latents"]["deviation"]

    def decode(
        self, nets: Params, latents: Float[Array, "b h w d"]
    ) -> Float[Array, "b H W c"]:
        """Return the images, clipped to [-1, 1], of z_0."""
        if self.autoencoder is None:
            return jnp.clip(latents, -1, 1)
        latents = latents * nets["latents"]["deviation"] + nets["latents"]["mean"]
        return latent_scaling.decode(self.autoencoder, nets["autoencoder"], latents)

    def sample(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        sampling: SamplingConfig | None,
    ) -> dict[str, Float[Array, "b H W c"]]:
        """Return sampled images of the batch's classes, and real images."""
        assert sampling is not None
        nets = gather_params(trees.merge(params, frozen))
        images = batch["images"]
        _, height, width, _ = images.shape
        size, labels = (height, width), batch.get("labels")
        drawn = self.draw(nets, keys, size, labels, sampling)
        # These show other subjects, of the same class if classes are used.
        real = latent_scaling.with_channels(images, self.channels)
        return {GENERATED: drawn[-1], "real": real}

    def draw(
        self,
        nets: Params,
        keys: Key[Array, " b"],
        size: tuple[int, int],
        labels: Int[Array, " b"] | None,
        sampling: SamplingConfig,
        frames: int = 1,
        noise: Float[Array, "b h w d"] | None = None,
    ) -> Float[Array, "n b H W c"]:
        """Sample images in [-1, 1], and return stages of the process.

        Args:
            nets: Weights by network, and the statistics.
            keys: One key per image, for all its random numbers.
            size: Height and width in pixels.
            labels: Classes, or None for a model without classes.
            sampling: Sampler, steps and guidance.
            frames: Largest number of stages to return. The last is the result.
            noise: Noise to start from. None means random noise.

        Raises:
            UserError: If the sampler does not support the settings.
        """
        plan = self.plan(sampling)
        first, later = split(keys, 2)
        side = self.autoencoder.downsampling if self.autoencoder else 1
        shape = (size[0] // side, size[1] // side, self.unet.channels)

        def fresh(step: Array) -> Array:
            fold = jax.vmap(lambda key: jax.random.fold_in(key, step))
            return normal(fold(later), shape)

        def denoise_fn(z: Array, timesteps: Array, step: Array) -> Array:
            del step
            if labels is None or sampling.guidance_scale == 1:
                return self._denoise(nets, z, timesteps, labels)[0]
            classes = jnp.concatenate(
                [jnp.full_like(labels, self.unet.num_classes), labels]
            )
            z, timesteps = (jnp.concatenate([x, x]) for x in (z, timesteps))
            both = self._denoise(nets, z, timesteps, classes)[0]
            without, given = jnp.split(both, 2)
            return guide(
                without, given, sampling.guidance_scale, sampling.guidance_rescale
            )

        start = plan.noise_scale * (normal(first, shape) if noise is None else noise)
        latents = samplers.trace(plan, denoise_fn, start, fresh, frames)
        return jax.lax.map(lambda z: self.decode(nets, z), latents)

    def plan(self, sampling: SamplingConfig) -> samplers.Plan:
        """Return the plan of the sampler's steps.

        Raises:
            UserError: If the sampler or the model does not support the settings.
        """
        guides = self.unet.num_classes and sampling.guidance_scale != 1
        if guides and not self.diffusion.label_dropout:
            raise UserError(
                f"guidance_scale={sampling.guidance_scale:g}: expected 1, because "
                "label_dropout=0. Guidance requires a model that was also trained "
                "without classes"
            )
        plan = samplers.make_plan(
            sampling.sampler, self.schedule, sampling.steps, sampling.eta
        )
        # Pixels are in [-1, 1], but latents have no fixed range.
        clip = 1.0 if self.autoencoder is None else None
        return dataclasses.replace(plan, clip=clip)

    def computing_in(self, dtype: Any) -> "ImageDiffusion":
        """Return a copy whose U-Net computes in `dtype`."""
        return dataclasses.replace(self, unet=self.unet.clone(dtype=dtype))

    def _denoise(
        self,
        nets: Params,
        z: Array,
        timesteps: Array,
        labels: Array | None,
        train: bool = False,
    ) -> tuple[Float[Array, "b h w c"], Params]:
        """Return the network's output, and its new running averages."""
        if "batch_stats" not in nets:
            output = apply(self.unet, nets["unet"], z, timesteps, labels)
            return output.astype(jnp.float32), {}
        made: Any = self.unet.apply(
            {"params": nets["unet"], "batch_stats": nets["batch_stats"]},
            z,
            timesteps,
            labels,
            train,
            mutable=["batch_stats"] if train else [],
        )
        output, renewed = made
        return output.astype(jnp.float32), dict(renewed)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedImageDiffusion:
    """A trained model that samples images without captions.

    Attributes:
        task: Functions of the model.
        nets: Weights by network, and the statistics; float32.
    """

    task: ImageDiffusion
    nets: Params

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the model."""
        return self.task.schedule

    def drawing(
        self,
        sampling: SamplingConfig,
        size: tuple[int, int],
        dtype: np.dtype,
        frames: int,
    ) -> Drawing:
        """Return what samples images; see `medjax.tasks.drawing.DrawingModel`."""
        task = self.task.computing_in(dtype)
        side = task.autoencoder.downsampling if task.autoencoder else 1
        check_size(size, side * task.unet.downsampling)
        task.plan(sampling)
        # Running averages, and mean and deviation of the latents, stay float32.
        kept = {name: self.nets[name] for name in self.nets if name != "unet"}
        return Drawing(
            {"unet": trees.cast(self.nets["unet"], dtype), **kept},
            lambda nets, batch, keys: task.draw(
                nets,
                keys,
                size,
                batch.get("labels"),
                sampling,
                frames,
                batch.get("noise"),
            ),
            _batch,
        )


def _batch(requests: Sequence[Request]) -> dict[str, np.ndarray]:
    batch: dict[str, np.ndarray] = {}
    if requests[0].label is not None:
        batch["labels"] = np.array([one.label for one in requests], np.int32)
    noise = [one.noise for one in requests if one.noise is not None]
    return batch | ({"noise": np.stack(noise)} if noise else {})
