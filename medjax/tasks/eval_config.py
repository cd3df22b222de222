"""The eval section of a config, for tasks that draw images and for others."""

import dataclasses

from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import check_least


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Validation, and the page of samples.

    Attributes:
        every: Updates between two validations.
        examples: Validation examples, always the same, with the same noise.
        sample_every: Updates between two pages of samples; the last is always drawn.
        samples: Images of a page, which shows the first 32 of them; all are measured.
    """

    every: int = 500
    examples: int = 64
    sample_every: int = 1000
    samples: int = 8

    def __post_init__(self) -> None:
        """Refuse counts that cannot be counted."""
        check_least(self, every=1, examples=1, sample_every=1, samples=1)

    def sampling(self) -> SamplingConfig | None:
        """How the images of a page are drawn; None where none is."""
        return None


@dataclasses.dataclass(frozen=True)
class SamplingEvalConfig(EvalConfig):
    """Validation of what draws images.

    Attributes:
        sampler: One of `medjax.diffusion.schedulers.SAMPLERS`.
        sampler_steps: Its steps.
        sampler_eta: Fresh noise in DDIM's steps, in [0, 1].
        guidance_scale: Weight of the caption or class; 1 is no guidance.
    """

    sampler: str = "ddim"
    sampler_steps: int = 50
    sampler_eta: float = 0.0
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        """Refuse counts that cannot be counted, and unknown samplers."""
        super().__post_init__()
        check_least(self, sampler_steps=1)
        # Which checks them.
        self.sampling()

    def sampling(self) -> SamplingConfig:
        """How the images of a page are drawn."""
        return SamplingConfig(
            sampler=self.sampler,
            steps=self.sampler_steps,
            eta=self.sampler_eta,
            guidance_scale=self.guidance_scale,
        )
