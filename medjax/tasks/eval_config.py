"""Config section `eval`, for tasks that sample images and for other tasks."""

import dataclasses

from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import check_least


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Settings of validation and of the pages of samples.

    Attributes:
        every: Number of steps between two validations, at least 1. The last step is
            always validated.
        examples: Number of validation examples for the loss, at least 1. They are
            always the same, with the same noise.
        sample_every: Number of steps between two pages of samples, at least 1. The last
            step always gets a page.
        samples: Number of images to sample for a page, at least 1. The page shows the
            first 32; metrics are computed from all.
    """

    every: int = 500
    examples: int = 64
    sample_every: int = 1000
    samples: int = 8

    def __post_init__(self) -> None:
        """Raise UserError if a number is below 1."""
        check_least(self, every=1, examples=1, sample_every=1, samples=1)

    def sampling(self) -> SamplingConfig | None:
        """Return the sampling settings of a run's sample pages.

        None for tasks that do not sample, such as autoencoders. Their pages show
        reconstructions.
        """
        return None


@dataclasses.dataclass(frozen=True)
class SamplingEvalConfig(EvalConfig):
    """Settings of validation for tasks that sample images.

    Attributes:
        sampler: Name of the sampler, such as ddim, ddpm, pndm or dpmpp_2m; the
            reference lists all.
        sampler_steps: Number of steps of the sampler, at least 1.
        sampler_eta: Amount η of new noise in each step of DDIM, in [0, 1]. 0 means no
            new noise, which all other samplers require.
        guidance_scale: Weight of the caption or class in classifier-free guidance, at
            least 1. 1 means no guidance.
    """

    sampler: str = "ddim"
    sampler_steps: int = 50
    sampler_eta: float = 0.0
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        """Raise UserError if a value is outside its range or the sampler is unknown."""
        super().__post_init__()
        check_least(self, sampler_steps=1)
        # SamplingConfig checks the values.
        self.sampling()

    def sampling(self) -> SamplingConfig:
        """Return how the images of a page are sampled."""
        return SamplingConfig(
            sampler=self.sampler,
            steps=self.sampler_steps,
            eta=self.sampler_eta,
            guidance_scale=self.guidance_scale,
        )
