"""Images from a trained model, one request an image, in batches over a mesh.

An image's noise comes from (seed, its number) alone, so that it is the same whatever
the batch, the mesh or the number of devices.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Key

from medjax import meshes, trees
from medjax.arrays import Array, Batch, Params
from medjax.data.tokens import tokenize
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.models.controlnet import ControlNet
from medjax.pretrained import StableDiffusion
from medjax.tasks.latent_diffusion import LatentDiffusion
from medjax.tasks.shape_checks import check_base
from medjax.tasks.trained import TrainedUnconditional

logger = logging.getLogger(__name__)

_PARTS = ("unet", "vae", "text_encoder", "controlnet")


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What one image is to be.

    Attributes:
        number: Tells its noise from that of other images of the same seed.
        prompt: Its caption.
        negative_prompt: What guidance leads away from.
        conditioning_image: The control, in [0, 1]; with a ControlNet.
        image: To begin from, in [-1, 1]; with a strength below 1.
        noise: To begin from, rather than what is drawn.
        label: Number of its class; for a model that knows classes, and no prompts.
    """

    number: int
    prompt: str = ""
    negative_prompt: str = ""
    conditioning_image: Float32[np.ndarray, "H W 3"] | None = None
    image: Float32[np.ndarray, "H W 3"] | None = None
    noise: Float32[np.ndarray, "h w z"] | None = None
    label: int | None = None


def latent_diffusion(sd: StableDiffusion, dtype: Any) -> LatentDiffusion:
    """Return a Stable Diffusion's networks, computing in `dtype`.

    Raises:
        UserError: If they do not fit each other.
    """

    def network(name: str) -> Any:
        part = getattr(sd, name)
        return part and type(part.module).from_config(part.config, dtype=dtype)

    model = LatentDiffusion(
        unet=network("unet"),
        vae=network("vae"),
        text_encoder=network("text_encoder"),
        controlnet=network("controlnet"),
        schedule=sd.schedule,
        null_text_ids=tokenize(sd.tokenizer, "")[0],
    )
    parts = (model.unet, model.vae, model.text_encoder)
    check_base("the model", *parts, len(sd.tokenizer))
    if isinstance(model.controlnet, ControlNet):
        model.controlnet.check_fits(model.unet, model.vae.downsampling)
    return model


def generate(
    model: StableDiffusion | TrainedUnconditional,
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

    Arguments and errors are those of `generate_stages`; without a mesh, the first
    device draws.
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
    model: StableDiffusion | TrainedUnconditional,
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
    """Return images in [-1, 1], and how they came to be, for each request in turn.

    Args:
        model: The networks.
        requests: All alike in what they have besides a prompt or a label.
        sampling: How to draw.
        size: Height and width in pixels.
        mesh: Which devices; its batch axes divide `batch_size`.
        seed: Of all noise.
        batch_size: Images at a time.
        dtype: To compute in; noise and sampler are float32.
        frames: How many stages of each at most, of which the last is the result.
            A plan that is shorter has fewer: its evaluations and its start.

    Raises:
        UserError: If the sampler, the networks and the sizes do not fit.
    """
    # What cannot be done is said here, and not when the first image is asked for.
    how = (sampling, size, jnp.dtype(dtype), frames)
    if isinstance(model, TrainedUnconditional):
        drawn = _unconditional(model, *how)
    else:
        drawn = _captioned(model, *how)
    return _in_batches(drawn, requests, mesh, seed, batch_size, jnp.dtype(dtype))


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """What draws a batch.

    Attributes:
        nets: Weights by network.
        draw: From nets, a batch and keys to stages of images (n b H W c).
        make_batch: From requests to a batch.
    """

    nets: Params
    draw: Callable[[Params, Batch, Array], Array]
    make_batch: Callable[[Sequence[Request]], dict[str, np.ndarray]]


def _captioned(
    sd: StableDiffusion,
    sampling: SamplingConfig,
    size: tuple[int, int],
    dtype: np.dtype,
    frames: int,
) -> _Drawing:
    model = latent_diffusion(sd, dtype)
    check_size(size, model.vae.downsampling)
    model.plan(sampling)
    parts = {n: getattr(sd, n).params for n in _PARTS if getattr(sd, n) is not None}
    return _Drawing(
        trees.cast(parts, dtype),
        lambda nets, batch, keys: model.draw(nets, batch, keys, sampling, size, frames),
        lambda requests: _batch(requests, sd.tokenizer),
    )


def _unconditional(
    model: TrainedUnconditional,
    sampling: SamplingConfig,
    size: tuple[int, int],
    dtype: np.dtype,
    frames: int,
) -> _Drawing:
    task = model.task.computing_in(dtype)
    side = task.autoencoder.downsampling if task.autoencoder else 1
    check_size(size, side * task.unet.downsampling)
    task.plan(sampling)
    # Running averages and the latents' scale stay float32.
    kept = {name: model.nets[name] for name in model.nets if name != "unet"}
    return _Drawing(
        {"unet": trees.cast(model.nets["unet"], dtype), **kept},
        lambda nets, batch, keys: task.draw(
            nets, keys, size, batch.get("labels"), sampling, frames
        ),
        _labels,
    )


def _labels(requests: Sequence[Request]) -> dict[str, np.ndarray]:
    if requests[0].label is None:
        return {}
    return {"labels": np.array([request.label for request in requests], np.int32)}


def _in_batches(
    drawing: _Drawing,
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
        # The last batch is filled up, or it would be compiled anew.
        filled = [*asked, *[asked[-1]] * (batch_size - len(asked))]
        batch = meshes.place_batch(drawing.make_batch(filled), mesh)
        numbers = np.array([request.number for request in filled], np.uint32)
        # The keys are an argument, or each seed would be compiled anew.
        keys = fold_in(key, jax.device_put(numbers, meshes.batch_sharding(mesh)))
        stages = np.asarray(draw(nets, batch, keys))
        for index, request in enumerate(asked):
            if not np.isfinite(stages[-1, index]).all():
                raise UserError(
                    f"image {request.number} is not finite: the weights are broken, or "
                    f"overflow in {dtype}; try --dtype=float32"
                )
            yield stages[:, index]


def check_size(size: tuple[int, int], side: int) -> None:
    """Check that images of this height and width can be drawn.

    Args:
        size: In pixels.
        side: What divides both.

    Raises:
        UserError: Names the nearest sizes that can.
    """
    for pixels in size:
        below = pixels // side * side
        if pixels != below or not below:
            near = " or ".join(str(x) for x in (below, below + side) if x)
            raise UserError(
                f"size is {size[0]}x{size[1]}, expected multiples of {side}, as {near}"
            )


def _batch(requests: Sequence[Request], tokenizer: Any) -> dict[str, np.ndarray]:
    def ids(texts: Sequence[str]) -> np.ndarray:
        found = [tokenize(tokenizer, text) for text in texts]
        for lost in dict.fromkeys(lost for _, lost in found if lost):
            logger.warning("the text encoder takes no more, left out: '%s'", lost)
        return np.stack([ids for ids, _ in found])

    batch = {
        "text_ids": ids([request.prompt for request in requests]),
        "null_text_ids": ids([request.negative_prompt for request in requests]),
    }
    names = {"conditioning_image": "conditioning_image", "images": "image"}
    for key, name in (names | {"noise": "noise"}).items():
        given = [getattr(request, name) for request in requests]
        if given[0] is not None:
            batch[key] = np.stack(given)
    return batch
