"""Sampling: the noise schedule, the steps from noise to images, and guidance."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def make_alphas_cumprod(
    num_train_timesteps: int,
    beta_schedule: str,
    beta_start: float,
    beta_end: float,
    rescale_betas_zero_snr: bool,
) -> Tensor:
    """Return ᾱ_t (T): the part of the variance that is signal at each timestep."""
    total, double = num_train_timesteps, torch.float64
    if beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, total, dtype=double)
    elif beta_schedule == "scaled_linear":
        ends = math.sqrt(beta_start), math.sqrt(beta_end)
        betas = torch.linspace(*ends, total, dtype=double) ** 2
    else:
        grid = torch.arange(total + 1, dtype=double) / total
        signal = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    alphas_cumprod = (1 - betas).cumprod(0)
    if rescale_betas_zero_snr:
        # Shift and stretch √ᾱ, so that the last timestep has no signal.
        alpha = alphas_cumprod.sqrt()
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        alphas_cumprod = alpha**2
    return alphas_cumprod.float().double()


def spaced_timesteps(total: int, steps: int) -> list[int]:
    """Return evenly spaced, falling timesteps. The first is T − 1.

    Args:
        total: Number T of timesteps of the schedule.
        steps: Number of timesteps to return.

    Raises:
        ValueError: If `steps` is not from 1 to T.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps={steps}: expected 1 to {total}")
    spaced = np.arange(total, 0, -total / steps).round().astype(int) - 1
    # Rounding in `arange` can add a timestep below 0.
    return [int(t) for t in spaced if t >= 0]


class ImageDiffusion(nn.Module):
    """A diffusion model of images, or of the latents of an autoencoder.

    Args:
        unet: The U-Net.
        autoencoder: The autoencoder; None for diffusion of pixels.
        mean: Mean of each channel of the latents; [] for pixels.
        deviation: Standard deviation of each channel of the latents.
        classes: Names of the classes; may be empty.
        label_dropout: Fraction of the training images that had no class. At 0, the
            model can neither sample without classes nor use guidance.
        prediction_type: Whether the U-Net predicts ``epsilon`` (the noise),
            ``v_prediction`` or ``sample`` (the clean images).
        schedule: Arguments of `make_alphas_cumprod`.
    """

    def __init__(
        self,
        unet: nn.Module,
        autoencoder: nn.Module | None,
        mean: Sequence[float],
        deviation: Sequence[float],
        classes: Sequence[str],
        label_dropout: float,
        prediction_type: str,
        schedule: dict[str, Any],
    ) -> None:
        super().__init__()
        self.unet, self.autoencoder = unet, autoencoder
        self._moments = mean, deviation
        self.classes, self.label_dropout = list(classes), label_dropout
        self.prediction_type = prediction_type
        self.alphas_cumprod = make_alphas_cumprod(**schedule).tolist()

    def noise(
        self, number: int, height: int, width: int, generator: torch.Generator
    ) -> Tensor:
        """Return noise (b c h w) to start from.

        Args:
            number: Number of images.
            height: Height of the images in pixels.
            width: Width of the images in pixels.
            generator: Source of the noise, which is on the generator's device.

        Raises:
            ValueError: If the networks cannot halve the size often enough.
        """
        side = 1 if self.autoencoder is None else self.autoencoder.downsampling
        multiple = side * self.unet.downsampling
        if height % multiple or width % multiple:
            raise ValueError(
                f"height={height}, width={width}: expected multiples of {multiple}"
            )
        shape = (number, self.unet.channels, height // side, width // side)
        return torch.randn(shape, generator=generator, device=generator.device)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        labels: Sequence[str] | None = None,
        steps: int = 50,
        guidance_scale: float = 1.0,
        sampler: str = "ddim",
        eta: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return images (b c H W) in [-1, 1].

        Args:
            noise: Standard normal noise, as `noise` returns it, on the device of the
                model.
            labels: Name of each image's class. None means images of no class.
            steps: Number of steps, from 1 to the number of timesteps.
            guidance_scale: Weight of the class; 1 means no guidance.
            sampler: ``ddim``, or ``ddpm``, which adds fresh noise in each step.
            eta: Amount of fresh noise in the steps of DDIM, from 0 to 1.
            generator: Source of fresh noise. None means the source of torch.

        Raises:
            ValueError: If an argument is out of range, or if the model cannot sample
                with these labels or this guidance.
        """
        if sampler not in ("ddim", "ddpm"):
            raise ValueError(f"sampler={sampler!r}: expected 'ddim' or 'ddpm'")
        if not 0 <= eta <= (sampler == "ddim"):
            raise ValueError(f"eta={eta}: expected 0 to 1 with ddim, and 0 with ddpm")
        numbers, z = self._numbers(labels, noise, guidance_scale), noise
        total = len(self.alphas_cumprod)
        timesteps = spaced_timesteps(total, steps)
        following = [t - total // steps for t in timesteps]
        if sampler == "ddpm":
            following = [*timesteps[1:], -1]
        for t, later in zip(timesteps, following, strict=True):
            output = self._predict(z, t, numbers, guidance_scale)
            fresh = torch.zeros_like(z)
            if eta or sampler == "ddpm":
                device = generator.device if generator else z.device
                fresh = torch.randn(z.shape, generator=generator, device=device).to(z)
            if sampler == "ddpm":
                z = self._ddpm(z, output, t, later, fresh)
            else:
                z = self._ddim(z, output, t, later, fresh, eta)
        return self.decode(z)

    def encode(self, images: Tensor) -> Tensor:
        """Return z_0: the images in [-1, 1], or their normalised latents."""
        if self.autoencoder is None:
            return images
        latents = self.autoencoder.encode(images)
        mean, deviation = (self._channels(x, latents) for x in self._moments)
        return (latents - mean) / deviation

    def decode(self, z: Tensor) -> Tensor:
        """Return the images in [-1, 1] of z_0."""
        if self.autoencoder is None:
            return z.clamp(-1, 1)
        mean, deviation = (self._channels(x, z) for x in self._moments)
        return self.autoencoder.decode(z * deviation + mean).clamp(-1, 1)

    def _channels(self, values: Sequence[float], like: Tensor) -> Tensor:
        """Return one number for each channel, to compute with arrays (b c h w)."""
        return torch.tensor(values).to(like)[:, None, None]

    def _numbers(
        self, labels: Sequence[str] | None, noise: Tensor, guidance_scale: float
    ) -> Tensor | None:
        """Return the number of each image's class. The last number means no class."""
        given, known = labels or (), ", ".join(self.classes) or "none"
        for label in given:
            if label not in self.classes:
                raise ValueError(f"label {label!r}: expected one of {known}")
        if labels is not None and len(labels) != len(noise):
            raise ValueError(f"{len(labels)} labels for {len(noise)} images")
        if not self.classes:
            return None
        if not self.label_dropout and (labels is None or guidance_scale != 1):
            raise ValueError(
                "the model was not trained without classes (label_dropout=0). Expected "
                f"labels, one of {known} for each image, and guidance_scale=1"
            )
        numbers = [self.classes.index(label) for label in given]
        numbers = numbers or [len(self.classes)] * len(noise)
        return torch.tensor(numbers, device=noise.device)

    def _predict(
        self, z: Tensor, t: int, numbers: Tensor | None, guidance_scale: float
    ) -> Tensor:
        """Return the U-Net's output, moved away from that of no class by guidance."""
        timesteps = torch.full((len(z),), t, device=z.device)
        given = self.unet(z, timesteps, numbers)
        if numbers is None or guidance_scale == 1:
            return given
        none = torch.full_like(numbers, len(self.classes))
        without = self.unet(z, timesteps, none)
        return without + guidance_scale * (given - without)

    def _levels(self, t: int) -> tuple[float, float]:
        """Return √ᾱ_t and √(1 − ᾱ_t). A timestep below 0 means the clean image."""
        signal = self.alphas_cumprod[t] if t >= 0 else 1.0
        return math.sqrt(signal), math.sqrt(1 - signal)

    def _clean(self, z: Tensor, output: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Return the clean images and the noise that the output implies."""
        alpha, sigma = self._levels(t)
        if self.prediction_type == "epsilon":
            clean, noise = (z - sigma * output) / alpha, output
        elif self.prediction_type == "v_prediction":
            clean, noise = alpha * z - sigma * output, alpha * output + sigma * z
        else:
            clean, noise = output, (z - alpha * output) / sigma
        # Pixels have a fixed range, latents do not.
        return (clean.clamp(-1, 1) if self.autoencoder is None else clean), noise

    def _ddim(
        self, z: Tensor, output: Tensor, t: int, later: int, fresh: Tensor, eta: float
    ) -> Tensor:
        """Return z after a step: Song et al., 2021, eq. 12 and 16."""
        (alpha, sigma), (next_alpha, next_sigma) = self._levels(t), self._levels(later)
        clean, noise = self._clean(z, output, t)
        beta = 1 - alpha**2 / next_alpha**2
        deviation = eta * next_sigma * math.sqrt(beta) / sigma
        rest = math.sqrt(max(next_sigma**2 - deviation**2, 0))
        return next_alpha * clean + rest * noise + deviation * fresh

    def _ddpm(
        self, z: Tensor, output: Tensor, t: int, later: int, fresh: Tensor
    ) -> Tensor:
        """Return z after a step: Ho et al., 2020, eq. 7."""
        (alpha, sigma), (next_alpha, next_sigma) = self._levels(t), self._levels(later)
        clean, _ = self._clean(z, output, t)
        beta = 1 - alpha**2 / next_alpha**2
        mean = next_alpha * beta * clean + alpha / next_alpha * next_sigma**2 * z
        deviation = next_sigma * math.sqrt(beta) / sigma
        return mean / sigma**2 + deviation * fresh
