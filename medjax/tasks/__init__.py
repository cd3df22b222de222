"""Tasks: which networks there are, which part trains, and what the loss is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from medjax.data.config import ClassDataConfig, ControlDataConfig, DataConfig
from medjax.diffusion.objective import DiffusionConfig, ScheduledDiffusionConfig
from medjax.tasks.assembly import Assembly, Given, Shown
from medjax.tasks.autoencoder_kl import AutoencoderKLConfig, make_autoencoder_kl_task
from medjax.tasks.autoencoder_loss import measure_reconstruction
from medjax.tasks.controlnet import (
    ControlNetConfig,
    ControlNetEvalConfig,
    make_controlnet_task,
    measure_adherence,
)
from medjax.tasks.eval_config import EvalConfig, SamplingEvalConfig
from medjax.tasks.interface import Task
from medjax.tasks.text_to_image import (
    TextToImageConfig,
    TextToImageEvalConfig,
    make_text_to_image_task,
    measure_likeness,
)
from medjax.tasks.trained import (
    trained_autoencoder,
    trained_controlnet,
    trained_text_to_image,
    trained_unconditional,
)
from medjax.tasks.unconditional import UnconditionalConfig, make_unconditional_task
from medjax.tasks.vq_vae import VQVAEConfig, make_vq_vae_task


def _nothing(shown: Shown, data: Any, config: Any) -> dict[str, float]:
    del shown, data, config
    return {}


@dataclasses.dataclass(frozen=True)
class Kind:
    """One row of the table of tasks.

    Attributes:
        sections: The dataclasses of those sections of its config that differ from one
            task to another.
        make: Builds it.
        trained: Puts what it trained where it is used; see `medjax.tasks.trained`.
        measure: Measures a page of samples, by the sections ``data`` and ``eval``.
        metrics: What validation gives beside the loss without being asked.
    """

    sections: Mapping[str, type]
    make: Callable[[Given], Assembly]
    trained: Callable[..., Any]
    measure: Callable[[Shown, Any, Any], dict[str, float]] = _nothing
    metrics: tuple[str, ...] = ()


_RECONSTRUCTED = ("reconstruction", "psnr_db", "ssim")

TASKS: dict[str, Kind] = {
    "controlnet": Kind(
        {
            "data": ControlDataConfig,
            "model": ControlNetConfig,
            "diffusion": DiffusionConfig,
            "eval": ControlNetEvalConfig,
        },
        make_controlnet_task,
        trained_controlnet,
        measure_adherence,
        ("edge_f1",),
    ),
    "text_to_image": Kind(
        {
            "data": DataConfig,
            "model": TextToImageConfig,
            "diffusion": DiffusionConfig,
            "eval": TextToImageEvalConfig,
        },
        make_text_to_image_task,
        trained_text_to_image,
        measure_likeness,
        ("mse", "psnr_db", "ssim"),
    ),
    "unconditional": Kind(
        {
            "data": ClassDataConfig,
            "model": UnconditionalConfig,
            "diffusion": ScheduledDiffusionConfig,
            "eval": SamplingEvalConfig,
        },
        make_unconditional_task,
        trained_unconditional,
    ),
    "vq_vae": Kind(
        {"data": DataConfig, "model": VQVAEConfig, "eval": EvalConfig},
        make_vq_vae_task,
        trained_autoencoder,
        measure_reconstruction,
        (*_RECONSTRUCTED, "commitment", "codebook", "perplexity", "codebook_usage"),
    ),
    "autoencoder_kl": Kind(
        {"data": DataConfig, "model": AutoencoderKLConfig, "eval": EvalConfig},
        make_autoencoder_kl_task,
        trained_autoencoder,
        measure_reconstruction,
        (*_RECONSTRUCTED, "kl"),
    ),
}

__all__ = ["TASKS", "Kind", "Task"]
