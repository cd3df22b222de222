"""Tasks: what can be trained. `TASKS` is the only list of all tasks.

To add a task, write a file with its functions, and add a row to the table.
"""

from medjax.data.config import ClassDataConfig, ControlDataConfig, DataConfig
from medjax.diffusion.objective import DiffusionConfig, ScheduledDiffusionConfig
from medjax.tasks import (
    autoencoder_kl,
    caption_measures,
    controlnet,
    text_to_image,
    unconditional,
    vq_vae,
)
from medjax.tasks.autoencoder_loss import measure_reconstruction
from medjax.tasks.captioned import check_cached_latents
from medjax.tasks.eval_config import EvalConfig, SamplingEvalConfig
from medjax.tasks.interface import Task
from medjax.tasks.row import CaptionScores, TaskRow

_RECONSTRUCTED = ("reconstruction", "psnr_db", "ssim")

TASKS: dict[str, TaskRow] = {
    "controlnet": TaskRow(
        sections={
            "data": ControlDataConfig,
            "model": controlnet.ControlNetConfig,
            "diffusion": DiffusionConfig,
            "eval": controlnet.ControlNetEvalConfig,
        },
        build=controlnet.make_controlnet_task,
        reopen=controlnet.trained_controlnet,
        check=check_cached_latents,
        measure=controlnet.measure_adherence,
        metrics=("edge_f1",),
        origins=controlnet.controlnet_origins,
        formats=controlnet.controlnet_formats,
        caption_scores=CaptionScores(),
    ),
    "text_to_image": TaskRow(
        sections={
            "data": DataConfig,
            "model": text_to_image.TextToImageConfig,
            "diffusion": DiffusionConfig,
            "eval": caption_measures.TextToImageEvalConfig,
        },
        build=text_to_image.make_text_to_image_task,
        reopen=text_to_image.trained_text_to_image,
        check=caption_measures.check_text_to_image,
        measure=caption_measures.measure_likeness,
        metrics=("mse", "psnr_db", "ssim"),
        optional_metrics=caption_measures.OPTIONAL_METRICS,
        first_stage=text_to_image.text_to_image_first_stage,
        check_first_stage=text_to_image.check_text_to_image_first_stage,
        origins=text_to_image.text_to_image_origins,
        formats=text_to_image.text_to_image_formats,
        caption_scores=caption_measures.FINDINGS_SCORES,
    ),
    "unconditional": TaskRow(
        sections={
            "data": ClassDataConfig,
            "model": unconditional.UnconditionalConfig,
            "diffusion": ScheduledDiffusionConfig,
            "eval": SamplingEvalConfig,
        },
        build=unconditional.make_unconditional_task,
        reopen=unconditional.trained_unconditional,
        check=unconditional.check_unconditional,
        first_stage=unconditional.unconditional_first_stage,
        check_first_stage=unconditional.check_unconditional_first_stage,
        formats=unconditional.unconditional_formats,
        classes=unconditional.unconditional_classes,
    ),
    "vq_vae": TaskRow(
        sections={"data": DataConfig, "model": vq_vae.VQVAEConfig, "eval": EvalConfig},
        build=vq_vae.make_vq_vae_task,
        reopen=vq_vae.trained_vq_vae,
        measure=measure_reconstruction,
        metrics=(
            *_RECONSTRUCTED,
            *("commitment", "codebook", "perplexity", "codebook_usage"),
        ),
        autoencoder=vq_vae.vq_vae_module,
        formats=lambda model, data: ("pytorch",),
    ),
    "autoencoder_kl": TaskRow(
        sections={
            "data": DataConfig,
            "model": autoencoder_kl.AutoencoderKLConfig,
            "eval": EvalConfig,
        },
        build=autoencoder_kl.make_autoencoder_kl_task,
        reopen=autoencoder_kl.trained_autoencoder_kl,
        measure=measure_reconstruction,
        metrics=(*_RECONSTRUCTED, "kl"),
        autoencoder=autoencoder_kl.untrained_autoencoder_kl,
        origins=autoencoder_kl.autoencoder_kl_origins,
        formats=lambda model, data: ("vae",),
    ),
}

__all__ = ["TASKS", "Task", "TaskRow"]
