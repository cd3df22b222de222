"""Write models without captions for PyTorch: as a pipeline, or with ``modeling.py``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from medjax.diffusion.sampling_config import SamplingConfig
from medjax.diffusion.schedulers import find_sampler, scheduler_config
from medjax.models.unet_2d import UNet2D
from medjax.pretrained.modeling_format import (
    TorchNetwork,
    autoencoder_for_torch,
    save_for_torch,
    unet_for_torch,
)
from medjax.pretrained.unet_2d_format import pipeline_of, save_image_pipeline
from medjax.runs.open_run import Run
from medjax.tasks.image_diffusion import TrainedImageDiffusion
from medjax.tasks.latent_scaling import TrainedAutoencoder

# Keys of a schedule that ``modeling.py`` reads. Its timestep spacing is always
# trailing, as in `medjax.tasks.unconditional`.
_SCHEDULE = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end"),
    "rescale_betas_zero_snr",
)


def torch_sampling(sampling: SamplingConfig) -> SamplingConfig:
    """Return the settings of sampling in PyTorch: DDIM replaces other samplers.

    ``modeling.py`` and pipelines of diffusers have DDIM and DDPM.
    """
    if sampling.sampler in ("ddim", "ddpm"):
        return sampling
    return dataclasses.replace(sampling, sampler="ddim", eta=0.0)


def pipeline_class(sampling: SamplingConfig) -> str:
    """Return the class of a pipeline that samples with these settings."""
    return pipeline_of(find_sampler(torch_sampling(sampling).sampler).scheduler)


def save_pixels_pipeline(
    model: TrainedImageDiffusion, run: Run, folder: Path, dtype: str
) -> None:
    """Write a diffusion model of pixels as a pipeline of diffusers.

    Raises:
        UserError: If `dtype` cannot hold the weights.
    """
    module, sampling = model.task.unet, run.config.eval.sampling()
    assert isinstance(module, UNet2D) and sampling is not None
    save_image_pipeline(
        module,
        unet_for_torch(module, model.nets["unet"], {}),
        scheduler_config(torch_sampling(sampling).sampler, model.schedule),
        run.config.data.image_size,
        folder,
        jnp.dtype(dtype),
    )


def save_pytorch(
    model: TrainedImageDiffusion | TrainedAutoencoder,
    run: Run,
    folder: Path,
    dtype: str,
) -> None:
    """Write a model with ``modeling.py``, which loads it.

    Raises:
        UserError: If `dtype` cannot hold the weights.
    """
    if isinstance(model, TrainedAutoencoder):
        network = autoencoder_for_torch(model.module, model.weights)
    else:
        network = _diffusion(model, run.config.data.classes)
    save_for_torch(network, folder, jnp.dtype(dtype))


def _diffusion(model: TrainedImageDiffusion, classes: tuple[str, ...]) -> TorchNetwork:
    nets, task = model.nets, model.task
    unet = unet_for_torch(task.unet, nets["unet"], nets.get("batch_stats", {}))
    assert model.schedule.config["timestep_spacing"] == "trailing"
    parts = {"unet": unet}
    if task.autoencoder is not None:
        weights = nets["autoencoder"]
        parts["autoencoder"] = autoencoder_for_torch(task.autoencoder, weights)
    config: dict[str, Any] = {
        "class": type(task).__name__,
        "autoencoder": None,
        **{name: part.config for name, part in parts.items()},
        **_moments(nets.get("latents", {})),
        "classes": classes,
        "label_dropout": task.diffusion.label_dropout,
        "prediction_type": model.schedule.prediction_type,
        "schedule": {key: model.schedule.config[key] for key in _SCHEDULE},
    }
    tensors: dict[str, Shaped[np.ndarray, "..."]] = {}
    for name, part in parts.items():
        tensors |= part.prefixed(name)
    return TorchNetwork(config, tensors)


def _moments(latents: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return mean and deviation of the latents; [] for pixels.

    They are part of the configuration, because the dtype of the weights would round
    them.
    """
    return {
        name: np.asarray(latents.get(name, [])).tolist()
        for name in ("mean", "deviation")
    }
