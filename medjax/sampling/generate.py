"""Sample images from a trained model, one per request, in batches over a mesh.

The seed and the image's number alone determine its noise. The noise is therefore the
same for any batch size, mesh or number of devices.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Key

from medjax import meshes, trees
from medjax.arrays import Array, Batch, Params
from medjax.data.tokens import tokenize
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.models.controlnet import ControlNet
from medjax.pretrained import Network, StableDiffusion
from medjax.tasks.base_model import base_weights
from medjax.tasks.drawing import Drawing, DrawingModel, Request, check_size
from medjax.tasks.latent_diffusion import LatentDiffusion
from medjax.tasks.shape_checks import check_base

logger = logging.getLogger(__name__)


def latent_diffusion(sd: StableDiffusion, dtype: Any) -> LatentDiffusion:
    """Return the networks of a Stable Diffusion, which compute in `dtype`.

    Raises:
        UserError: If the networks do not fit each other.
    """

    def module(part: Network | None) -> Any:
        return part and type(part.module).from_config(part.config, dtype=dtype)

    model = LatentDiffusion(
        unet=module(sd.unet),
        vae=module(sd.vae),
        text_encoder=module(sd.text_encoder),
        controlnet=module(sd.controlnet),
        schedule=sd.schedule,
        null_text_ids=tokenize(sd.tokenizer, "")[0],
    )
    parts = (model.unet, model.vae, model.text_encoder)
    check_base("the model", *parts, len(sd.tokenizer))
    if isinstance(model.controlnet, ControlNet):
        model.controlnet.check_fits(model.unet, model.vae.downsampling)
    return model


def generate(
    model: StableDiffusion | DrawingModel,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    size: tuple[int, int],
    mesh: Mesh | None = None,
    *,
    seed: int = 0,
    batch_size: int = 1,
    dtype: Any = jnp.float32,
) -> Iterator[Float[np.ndarray, "H W c"]]:
    """Return images in [-1, 1], one for each request.

    Arguments and errors are the same as for `generate_stages`. Without a mesh, the
    first local device computes the images.
    """
    if mesh is None:
        mesh = meshes.make_mesh(meshes.MeshConfig(), jax.local_devices()[:1])
    stages = generate_stages(
        model,
        requests,
        sampling,
        size,
        mesh,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
    )
    return (images[-1] for images in stages)


def generate_stages(
    model: StableDiffusion | DrawingModel,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    size: tuple[int, int],
    mesh: Mesh,
    *,
    seed: int = 0,
    batch_size: int = 1,
    dtype: Any = jnp.float32,
    frames: int = 1,
) -> Iterator[Float[np.ndarray, "n H W c"]]:
    """Yield the stages of each image in [-1, 1], in the order of the requests.

    Args:
        model: The networks.
        requests: One per image. Besides a prompt or a label, all have the same fields.
        sampling: Sampler settings.
        size: Height and width in pixels.
        mesh: The devices. Its batch axes must divide `batch_size`.
        seed: Seed of all noise.
        batch_size: Images per batch.
        dtype: Dtype of the networks' computation; noise and sampler are float32.
        frames: Maximum number of stages per image; the last one is the result. A
            short plan gives fewer: one per evaluation of the network, and the start.

    Raises:
        UserError: If the sampler, the networks and the size do not fit each other.
    """
    # Check here, so that errors come before the caller requests the first image.
    how = (sampling, size, jnp.dtype(dtype), frames)
    if isinstance(model, StableDiffusion):
        drawing = _captioned(model, *how)
    else:
        drawing = model.drawing(*how)
    return _in_batches(drawing, requests, mesh, seed, batch_size, jnp.dtype(dtype))


def _captioned(
    sd: StableDiffusion,
    sampling: SamplingConfig,
    size: tuple[int, int],
    dtype: np.dtype,
    frames: int,
) -> Drawing:
    model = latent_diffusion(sd, dtype)
    check_size(size, model.vae.downsampling)
    model.plan(sampling)
    parts = base_weights(sd)
    if sd.controlnet is not None:
        parts["controlnet"] = sd.controlnet.params
    return Drawing(
        trees.cast(parts, dtype),
        lambda nets, batch, keys: model.draw(nets, batch, keys, sampling, size, frames),
        lambda requests: _batch(requests, sd.tokenizer),
    )


def _in_batches(
    drawing: Drawing,
    requests: Sequence[Request],
    mesh: Mesh,
    seed: int,
    batch_size: int,
    dtype: np.dtype,
) -> Iterator[Float[np.ndarray, "n H W c"]]:
    nets = meshes.place_params(drawing.nets, mesh)
    key = jax.random.key(seed)
    fold_in = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))

    def draw(nets: Params, batch: Batch, keys: Key[Array, " b"]) -> Array:
        return drawing.draw(meshes.gather_params(nets), batch, keys)

    draw = jax.jit(meshes.on_mesh(mesh, draw))
    for start in range(0, len(requests), batch_size):
        asked = requests[start : start + batch_size]
        # Fill the last batch, because another batch size would be compiled again.
        filled = [*asked, *[asked[-1]] * (batch_size - len(asked))]
        batch = meshes.place_batch(drawing.make_batch(filled), mesh)
        numbers = np.array([request.number for request in filled], np.uint32)
        # Keys are an argument, because a constant seed would be compiled again.
        keys = fold_in(key, jax.device_put(numbers, meshes.batch_sharding(mesh)))
        stages = np.asarray(draw(nets, batch, keys))
        for index, request in enumerate(asked):
            if not np.isfinite(stages[-1, index]).all():
                raise UserError(
                    f"image {request.number} is not finite. Either the weights are "
                    f"damaged, or values overflow in {dtype}; try --dtype=float32"
                )
            yield stages[:, index]


def _batch(requests: Sequence[Request], tokenizer: Any) -> dict[str, np.ndarray]:
    def ids(texts: Sequence[str]) -> np.ndarray:
        found = [tokenize(tokenizer, text) for text in texts]
        for lost in dict.fromkeys(lost for _, lost in found if lost):
            logger.warning("caption too long for the text encoder; cut off: '%s'", lost)
        return np.stack([ids for ids, _ in found])

    batch = {
        "text_ids": ids([request.prompt for request in requests]),
        "null_text_ids": ids([request.negative_prompt for request in requests]),
    }
    arrays: dict[str, list[Any]] = {
        "conditioning_image": [request.conditioning_image for request in requests],
        "images": [request.image for request in requests],
        "noise": [request.noise for request in requests],
    }
    given = {name: images for name, images in arrays.items() if images[0] is not None}
    return batch | {name: np.stack(images) for name, images in given.items()}
