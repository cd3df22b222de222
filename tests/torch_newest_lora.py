"""Apply exported adapters in any version of PyTorch diffusers; a script.

    python tests/torch_newest_lora.py INPUTS.npz BASE FOLDER FILE OUTPUT.npz …

It does not import medjax. INPUTS has ``noisy_latents`` (b h w c), ``timesteps`` and
``text_ids``. The other four arguments are repeated. BASE is a StableDiffusionPipeline.
FILE is in FOLDER, or "" for none. OUTPUT gets ``text_embeddings``, the U-Net's
``model_output`` for them, and ``versions``.
"""

import importlib.metadata
import sys

import numpy as np
import torch
from diffusers import StableDiffusionPipeline


def outputs(base: str, folder: str, file: str, inputs: dict) -> dict[str, np.ndarray]:
    """Return the outputs of both networks for the inputs, in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    if file:
        pipeline.load_lora_weights(folder, weight_name=file)
    latents = torch.from_numpy(inputs["noisy_latents"]).permute(0, 3, 1, 2)
    timesteps, text_ids = (
        torch.from_numpy(inputs[name]).long() for name in ("timesteps", "text_ids")
    )
    with torch.no_grad():
        text = pipeline.text_encoder(text_ids).last_hidden_state
        output = pipeline.unet(latents, timesteps, text).sample
    return {
        "text_embeddings": text.numpy(),
        "model_output": output.permute(0, 2, 3, 1).numpy(),
    }


if __name__ == "__main__":
    source, *rest = sys.argv[1:]
    with np.load(source) as stored:
        inputs = dict(stored)
    names = ("torch", "diffusers", "transformers", "peft")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    for first in range(0, len(rest), 4):
        base, folder, file, target = rest[first : first + 4]
        found = outputs(base, folder, file, inputs)
        np.savez(target, **found, versions=np.array(versions))
    print(*versions, sep=", ")
