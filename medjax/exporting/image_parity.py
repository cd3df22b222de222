"""Compare a model without captions with PyTorch: each network, and one image."""

import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from medjax.diffusion.sampling_config import SamplingConfig
from medjax.models.apply import apply
from medjax.models.vq_vae import VQVAE, nearest_codes
from medjax.pretrained.parity import output_error
from medjax.pretrained.torch_images import TorchImages
from medjax.sampling.generate import generate
from medjax.tasks import latent_scaling
from medjax.tasks.drawing import Request
from medjax.tasks.image_diffusion import TrainedImageDiffusion
from medjax.tasks.latent_scaling import TrainedAutoencoder

STEPS = 20
_SEED, _GUIDANCE, _COUNT = 0, 2.0, 2
# Side of the feature maps of the coarsest level.
_SIDE = 4


def measure_image_parity(
    model: TrainedImageDiffusion | TrainedAutoencoder,
    theirs: TorchImages,
    libraries: tuple[str, ...],
) -> dict[str, Any]:
    """Compare an export, loaded by PyTorch, with the model in memory.

    Args:
        model: The exported model in float32.
        theirs: The export, loaded by PyTorch.
        libraries: Names of the libraries whose versions are recorded.

    Returns:
        ``networks``, ``versions`` and ``inputs``, as from
        `medjax.pretrained.parity.measure_parity`. A diffusion model also has ``image``,
        as from `compare_image`.
    """
    rng = np.random.default_rng(1)
    report: dict[str, Any] = {"networks": {}}
    with jax.default_matmul_precision("highest"):
        if isinstance(model, TrainedImageDiffusion):
            report["networks"]["unet"] = _unet_error(model, theirs, rng)
            report["image"] = compare_image(model, theirs)
            autoencoder = _autoencoder(model)
        else:
            autoencoder = model
        if autoencoder is not None:
            report["networks"] |= _autoencoder_errors(autoencoder, theirs, rng)
    report["inputs"] = f"random: feature maps of at least {_SIDE}²; float32"
    report["versions"] = {name: importlib.metadata.version(name) for name in libraries}
    return report


def _unet_error(
    model: TrainedImageDiffusion, theirs: TorchImages, rng: np.random.Generator
) -> dict[str, float]:
    """Return the errors of the U-Net, for the first class and for none."""
    unet, nets = model.task.unet, model.nets
    side = _SIDE * unet.downsampling
    last = model.schedule.num_timesteps - 1
    timesteps = np.array([last // 1000, 9 * last // 10], np.int32)
    z = rng.standard_normal((_COUNT, side, side, unet.channels), np.float32)
    labels = np.array([0, unet.num_classes]) if unet.num_classes else None
    weights = {"params": nets["unet"]}
    if "batch_stats" in nets:
        weights["batch_stats"] = nets["batch_stats"]
    ours = jax.jit(unet.apply)(weights, z, timesteps, labels)
    assert theirs.unet is not None
    return output_error([np.asarray(ours)], [theirs.unet(z, timesteps, labels)])


def _autoencoder(model: TrainedImageDiffusion) -> TrainedAutoencoder | None:
    module = model.task.autoencoder
    if module is None:
        return None
    return TrainedAutoencoder(module, model.nets["autoencoder"], "")


def _autoencoder_errors(
    model: TrainedAutoencoder, theirs: TorchImages, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the errors of encoder and decoder."""
    module, weights = model.module, model.weights
    side = _SIDE * module.downsampling
    images = rng.uniform(-1, 1, (_COUNT, side, side, model.channels))
    images = images.astype(np.float32)
    shape = (_COUNT, _SIDE, _SIDE, module.latent_channels)
    latents = rng.standard_normal(shape, np.float32)
    encoded = jax.jit(lambda x: latent_scaling.encode_mean(module, weights, x))(images)
    decoded = jax.jit(lambda z: _decode(model, z))(latents)
    assert theirs.encode is not None and theirs.decode is not None
    return {
        "encoder": output_error([np.asarray(encoded)], [theirs.encode(images)]),
        "decoder": output_error([np.asarray(decoded)], [theirs.decode(latents)]),
    }


def _decode(model: TrainedAutoencoder, latents: Any) -> Any:
    """Return images of latents, quantised by a VQ-VAE; they are not clipped."""
    if isinstance(model.module, VQVAE):
        codebook = jnp.asarray(model.weights["codebook"])
        latents = codebook[nearest_codes(latents, codebook)]
    return apply(model.module, model.weights["network"], latents, method="decode")


def compare_image(
    model: TrainedImageDiffusion, theirs: TorchImages, size: int | None = None
) -> dict[str, Any]:
    """Compare an image by our sampler with one by PyTorch's, from the same noise.

    Args:
        model: The model in memory.
        theirs: The export, loaded by PyTorch.
        size: Height and width in pixels. None means the smallest size at which the
            coarsest feature maps have `_SIDE` × `_SIDE` values.

    Returns:
        The errors of `image_error`, and ``what``: how the image was sampled.
    """
    task = model.task
    size = size or _SIDE * task.unet.downsampling * (
        task.autoencoder.downsampling if task.autoencoder else 1
    )
    classes, steps = task.unet.num_classes, min(STEPS, model.schedule.num_timesteps)
    guidance = _GUIDANCE if classes and task.diffusion.label_dropout else 1.0
    label = 0 if classes else None
    assert theirs.sample is not None
    noise, image = theirs.sample(_SEED, (size, size), label, steps, guidance)
    request = Request(0, noise=noise[0], label=label)
    sampling = SamplingConfig("ddim", steps, guidance_scale=guidance)
    (ours,) = generate(model, [request], sampling, (size, size))
    return {
        **image_error(ours, image[0]),
        "what": f"{size}² pixels, ddim, {steps} steps, guidance {guidance}; in [0, 1]",
    }


def image_error(
    ours: Float[np.ndarray, "H W c"], theirs: Float[np.ndarray, "H W c"]
) -> dict[str, float]:
    """Return the errors of an image, scaled from [-1, 1] to [0, 1].

    Returns:
        ``psnr_db``: the peak signal-to-noise ratio, at most 120 dB. ``max_abs``: the
        largest error of a value.
    """
    apart = (ours.astype(np.float64) - theirs) / 2
    return {
        "psnr_db": float(-10 * np.log10(max(np.mean(apart**2), 1e-12))),
        "max_abs": float(np.abs(apart).max()),
    }
