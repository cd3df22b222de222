"""Compare an export with PyTorch: each network, on small random inputs.

PyTorch loads the exported folder and computes in float32, for any stored dtype. Its
results are compared with those of the model in memory. The errors therefore include
the loss from storing at lower precision.
"""

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from medjax.errors import UserError
from medjax.pretrained import layout
from medjax.pretrained.flax_pipelines import quiet
from medjax.pretrained.networks import Network, StableDiffusion

LIBRARIES = ("torch", "diffusers", "transformers")
_TIMESTEPS = (1, 900)
# Side of the feature maps in the middle of the U-Net.
_SIDE = 2

Inputs = Mapping[str, Any]
Error = dict[str, float]


def missing_libraries(names: Sequence[str] = LIBRARIES) -> list[str]:
    """Return the names of the libraries that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def measure_parity(
    folder: str | Path, model: StableDiffusion | Network
) -> dict[str, Any]:
    """Compare an exported folder, loaded by PyTorch, with the model in memory.

    Args:
        folder: Folder of a pipeline, or of a ControlNet or an autoencoder alone.
        model: The exported model in float32: a Stable Diffusion with its ControlNet, or
            an autoencoder.

    Returns:
        ``networks``: two errors of each network in the folder. ``max_abs`` is the
        largest error of a value, and ``relative_l2`` is the norm of the error divided
        by the norm of PyTorch's output. ``versions``: the versions of the libraries.
        ``inputs``: a description of the inputs.

    Raises:
        UserError: If torch, diffusers or transformers is not installed.
    """
    if missing := missing_libraries():
        raise UserError(
            f"parity requires {', '.join(missing)}: pip install {missing[0]}"
        )
    inputs: Inputs
    with jax.default_matmul_precision("highest"), quiet():
        if isinstance(model, Network):
            inputs = _vae_inputs(model, _SIDE)
            networks = _vae_errors(Path(folder), model, inputs)
        else:
            inputs = _inputs(model)
            networks = _measure(Path(folder), model, inputs)
    latents, images = inputs["latents"].shape, inputs["images"].shape
    return {
        "networks": networks,
        "inputs": f"random: latents {latents}, images {images}; float32",
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def sample_by_torch(
    folder: str | Path,
    prompt: str,
    conditioning_image: Float[np.ndarray, "H W 3"] | None,
    noise: Float[np.ndarray, "h w c"],
    steps: int,
    guidance_scale: float,
) -> Float[np.ndarray, "H W 3"]:
    """Return an image in [-1, 1] that PyTorch diffusers samples in float32.

    Args:
        folder: Folder of an exported pipeline, whose own scheduler samples.
        prompt: Caption of the image.
        conditioning_image: Input of the ControlNet, in [0, 1]. None means that the
            pipeline has no ControlNet.
        noise: Initial noise of the latents.
        steps: Number of scheduler steps.
        guidance_scale: Weight of the caption.
    """
    import torch
    from diffusers import DiffusionPipeline

    control = {}
    if conditioning_image is not None:
        control["image"] = as_tensor(conditioning_image[None])
    with quiet():
        pipeline: Any = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.float32
        )
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            prompt,
            **control,
            latents=as_tensor(noise[None]),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="np",
        ).images
    return 2 * images[0] - 1


def _inputs(sd: StableDiffusion) -> Inputs:
    """Return the inputs of all networks, with channels last."""
    rng = np.random.default_rng(0)
    unet, text = sd.unet.module, sd.text_encoder.module.config
    side = _SIDE * 2 ** (len(unet.block_out_channels) - 1)
    pixels = side * sd.vae.module.downsampling
    count, length = len(_TIMESTEPS), text.max_position_embeddings

    def normal(*shape: int) -> Float[np.ndarray, "..."]:
        return rng.standard_normal((count, *shape), np.float32)

    return _vae_inputs(sd.vae, side) | {
        "noisy_latents": normal(side, side, unet.in_channels),
        "timesteps": np.array(_TIMESTEPS, np.int32),
        "text_embeddings": normal(length, unet.cross_attention_dim),
        "conditioning_image": rng.random((count, pixels, pixels, 3), np.float32),
        "text_ids": rng.integers(0, text.vocab_size, (count, length), np.int32),
    }


def _vae_inputs(vae: Network, side: int) -> dict[str, Any]:
    """Return images for an autoencoder, and latents of `side` × `side`."""
    rng = np.random.default_rng(1)
    module = vae.module
    images = (2, *[side * module.downsampling] * 2, module.in_channels)
    latents = (2, side, side, module.latent_channels)
    return {
        "images": rng.uniform(-1, 1, images).astype(np.float32),
        "latents": rng.standard_normal(latents, np.float32),
    }


def _measure(folder: Path, sd: StableDiffusion, inputs: Inputs) -> dict[str, Error]:
    """Return each network's errors, with one torch module in memory at a time."""
    import diffusers
    import torch
    from transformers import CLIPTextModel

    def load(cls: Any, name: str) -> Any:
        return cls.from_pretrained(folder / name).float().eval()

    whole = (folder / layout.MODEL_INDEX).is_file()
    given = {name: as_tensor(array) for name, array in inputs.items()}
    names = ("noisy_latents", "timesteps", "text_embeddings")
    ours, theirs = [inputs[n] for n in names], [given[n] for n in names]
    errors, added, added_there = {}, (), {}
    with torch.no_grad():
        if sd.controlnet is not None:
            added = _run(sd.controlnet, *ours, inputs["conditioning_image"])
            module = load(diffusers.ControlNetModel, "controlnet" if whole else ".")
            down, mid = module(*theirs, given["conditioning_image"], return_dict=False)
            errors["controlnet"] = _error([*added[0], added[1]], [*down, mid])
            added_there = {
                "down_block_additional_residuals": [as_tensor(x) for x in added[0]],
                "mid_block_additional_residual": as_tensor(added[1]),
            }
        if not whole:
            return errors
        module = load(diffusers.UNet2DConditionModel, "unet")
        got = _run(sd.unet, *ours, *added)
        errors["unet"] = _error([got], [module(*theirs, **added_there).sample])
        errors |= _vae_errors(folder / "vae", sd.vae, inputs)
        module = load(CLIPTextModel, "text_encoder")
        got = _run(sd.text_encoder, inputs["text_ids"])
        expected = module(given["text_ids"].long()).last_hidden_state
        errors["text_encoder"] = _error([got], [expected])
    return errors


def _vae_errors(folder: Path, vae: Network, inputs: Inputs) -> dict[str, Error]:
    """Return the errors of an autoencoder's encoder and decoder."""
    import diffusers
    import torch

    module = diffusers.AutoencoderKL.from_pretrained(folder).float().eval()
    images, latents = inputs["images"], inputs["latents"]
    mean, logvar = _run(vae, images, method="encode")
    decoded = _run(vae, latents, method="decode")
    with torch.no_grad():
        posterior = module.encode(as_tensor(images)).latent_dist
        expected = module.decode(as_tensor(latents)).sample
    return {
        "vae_encoder": _error([mean, logvar], [posterior.mean, posterior.logvar]),
        "vae_decoder": _error([decoded], [expected]),
    }


def _run(network: Network, *inputs: Any, method: str | None = None) -> Any:
    """Return the output of one of our networks, on the host."""
    module = network.module

    @jax.jit
    def run(params: Any, *inputs: Any) -> Any:
        return module.apply({"params": params}, *inputs, method=method)

    return jax.device_get(run(network.params, *inputs))


def as_tensor(array: Any) -> Any:
    """Return a torch tensor; arrays with four axes get channels first."""
    import torch

    axes = (0, 3, 1, 2) if array.ndim == 4 else range(array.ndim)
    # Copy, because torch warns about jax arrays, which are not writable.
    return torch.from_numpy(array.transpose(*axes).copy())


def _error(ours: Sequence[Any], theirs: Sequence[Any]) -> Error:
    """Return the errors of arrays, against tensors with channels first."""
    return output_error(
        [as_tensor(array).numpy() for array in ours],
        [tensor.numpy() for tensor in theirs],
    )


def output_error(
    ours: Sequence[Float[np.ndarray, "..."]], theirs: Sequence[Float[np.ndarray, "..."]]
) -> Error:
    """Return the errors over all outputs of a network together.

    Returns:
        ``max_abs`` and ``relative_l2``, see `measure_parity`.
    """
    expected = np.concatenate([array.ravel() for array in theirs])
    got = np.concatenate([array.ravel() for array in ours])
    difference = got.astype(np.float64) - expected
    # The norm is 0 if the last layer is still zero, as in an untrained ControlNet.
    norm = np.linalg.norm(expected) or 1.0
    return {
        "max_abs": float(np.abs(difference).max()),
        "relative_l2": float(np.linalg.norm(difference) / norm),
    }
