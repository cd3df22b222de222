"""Sample from an exported pipeline with any version of PyTorch diffusers; a script.

    python tests/torch_newest.py FOLDER INPUTS.npz OUTPUT.npz

It does not import medjax. INPUTS has ``latents`` (b h w c; Gaussian noise),
``conditioning_image`` (b H W 3, in [0, 1]), ``prompts`` and ``negative_prompts`` (b
texts each), ``steps``, ``guidance_scale`` and ``conditioning_scale``. OUTPUT gets
``images`` (b H W 3, in [0, 1]), computed in float32, and ``versions``.
"""

import importlib.metadata
import sys

import numpy as np
import torch
from diffusers import StableDiffusionControlNetPipeline


def sample(folder: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return images of the pipeline, sampled with its own scheduler."""
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        folder, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    latents, condition = (
        torch.from_numpy(inputs[name]).permute(0, 3, 1, 2).contiguous()
        for name in ("latents", "conditioning_image")
    )
    return pipeline(
        [str(text) for text in inputs["prompts"]],
        negative_prompt=[str(text) for text in inputs["negative_prompts"]],
        image=condition,
        latents=latents,
        num_inference_steps=int(inputs["steps"]),
        guidance_scale=float(inputs["guidance_scale"]),
        controlnet_conditioning_scale=float(inputs["conditioning_scale"]),
        output_type="np",
    ).images


if __name__ == "__main__":
    folder, source, target = sys.argv[1:]
    with np.load(source) as file:
        images = sample(folder, dict(file))
    names = ("torch", "diffusers", "transformers", "huggingface_hub")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    np.savez(target, images=images, versions=np.array(versions))
    print(*versions, sep=", ")
