"""Define the competitors that sample with one ControlNet: medjax and torch diffusers.

Both get the same text embeddings, edges and initial noise. They take 20 steps of DDIM
with guidance, each with two evaluations of the U-Net and the ControlNet, then decode.

A function of `Settings` makes each competitor. The competitor is a function that
samples a batch, waits until it is done, and returns the mean of the images, in [0, 1].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.networks import (
    Settings,
    draw_batch,
    draw_controlnet,
    draw_unet,
    draw_vae,
)
from bench.torch_steps import channels_first, compile_torch, load_torch, torch_device
from bench.workers import Counted, Make
from medjax import trees

STEPS, GUIDANCE = 20, 7.5
# The schedule of Stable Diffusion 1.5.
SCHEDULE: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# Not used, because the text embeddings are given.
TEXT = {"vocab_size": 1, "hidden_size": 8, "num_attention_heads": 1}


def make_medjax(settings: Settings) -> Callable[[], float]:
    """Return medjax's sampling, as `python -m medjax.sample` does it."""
    import jax
    import jax.numpy as jnp

    from medjax.diffusion.sampling_config import SamplingConfig
    from medjax.diffusion.schedule import make_schedule
    from medjax.models.autoencoder_kl import AutoencoderKL
    from medjax.models.clip_text import CLIPText
    from medjax.models.controlnet import ControlNet
    from medjax.models.unet_2d_condition import UNet2DCondition
    from medjax.tasks.latent_diffusion import LatentDiffusion
    from medjax.training.speed import step_flops

    class TextGiven(LatentDiffusion):
        """Latent diffusion whose text ids are rows of a table of embeddings."""

        def embed_text(self, nets: Any, text_ids: Any) -> Any:
            return nets["text"][text_ids[:, 0]]

    dtype = jnp.dtype(settings.dtype)
    model = TextGiven(
        unet=UNet2DCondition.from_config(settings.unet_config, dtype=dtype),
        vae=AutoencoderKL.from_config(settings.vae_config, dtype=dtype),
        text_encoder=CLIPText.from_config(TEXT),
        controlnet=ControlNet.from_config(settings.controlnet_config, dtype=dtype),
        schedule=make_schedule(SCHEDULE),
        null_text_ids=np.zeros(1, np.int32),
    )
    given = draw_batch(settings)
    text = np.concatenate(
        [np.zeros_like(given["text_embeddings"][:1]), given["text_embeddings"]]
    )
    nets = {
        "unet": draw_unet(settings),
        "vae": draw_vae(settings),
        "controlnet": draw_controlnet(settings),
        "text": text,
    }
    nets = jax.device_put(trees.cast(nets, dtype))
    batch = {
        "text_ids": jnp.arange(1, settings.batch + 1)[:, None],
        "conditioning_image": jnp.asarray(given["conditioning_image"]),
        "noise": jnp.asarray(given["noise"]),
    }
    keys = jax.random.split(jax.random.key(0), settings.batch)
    sampling = SamplingConfig(steps=STEPS, guidance_scale=GUIDANCE)
    size = (settings.size, settings.size)
    draw = jax.jit(lambda nets, batch: model.draw(nets, batch, keys, sampling, size)[0])

    def step() -> float:
        return float(draw(nets, batch).mean()) / 2 + 0.5

    return Counted(step, lambda: step_flops(draw, nets, batch))


def make_torch(settings: Settings) -> Callable[[], float]:
    """Return the sampling of diffusers' pipeline; compiled, channels last on a GPU."""
    import torch
    from diffusers import (
        AutoencoderKL,
        ControlNetModel,
        DDIMScheduler,
        StableDiffusionControlNetPipeline,
        UNet2DConditionModel,
    )

    device, dtype = torch_device(), getattr(torch, settings.dtype)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**settings.unet_config)
        vae: Any = AutoencoderKL(**settings.vae_config)
        controlnet: Any = ControlNetModel(**settings.controlnet_config)
    load_torch(unet, draw_unet(settings))
    load_torch(vae, draw_vae(settings))
    load_torch(controlnet, draw_controlnet(settings))
    networks = [net.eval().to(device, dtype) for net in (unet, vae, controlnet)]
    if device.type == "cuda":
        networks = [net.to(memory_format=torch.channels_last) for net in networks]
    pipeline: Any = StableDiffusionControlNetPipeline(
        unet=networks[0],
        vae=networks[1],
        controlnet=networks[2],
        text_encoder=None,
        tokenizer=None,
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet = compile_torch(pipeline.unet, settings)
    pipeline.controlnet = compile_torch(pipeline.controlnet, settings)
    pipeline.vae.decode = compile_torch(pipeline.vae.decode, settings)
    given = {
        name: torch.from_numpy(channels_first(x)).to(device)
        for name, x in draw_batch(settings).items()
    }
    text = given["text_embeddings"].to(dtype)

    def step() -> float:
        images = pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=torch.zeros_like(text),
            image=given["conditioning_image"],
            latents=given["noise"].to(dtype),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="pt",
        ).images
        return images.float().mean().item()

    return step


@dataclasses.dataclass(frozen=True)
class Painter:
    """A competitor of sampling, and the packages that it requires."""

    make: Make
    packages: tuple[str, ...] = ()


PAINTERS = {
    "medjax": Painter(make_medjax),
    "torch": Painter(make_torch, ("torch", "diffusers")),
}
