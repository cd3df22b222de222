"""Compute before training what every epoch needs: images, latents, captions."""

from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh

from medjax.arrays import Params
from medjax.data.config import ControlDataConfig
from medjax.data.image_cache import cache_images
from medjax.data.pipeline import Source
from medjax.errors import UserError
from medjax.runs.config import RunConfig
from medjax.tasks.interface import BuiltTask
from medjax.training.caption_cache import cache_captions
from medjax.training.latent_cache import cache_latents
from medjax.training.programs import microbatch
from medjax.training.stop import StopRequest


def cached_examples(
    config: RunConfig,
    built: BuiltTask,
    inputs: Mapping[str, Mapping[str, str]],
    examples: Source,
    frozen: Params,
    mesh: Mesh,
    workdir: Path,
    stop: StopRequest,
) -> Source:
    """Return the training split with everything cached that the config names.

    Args:
        config: Config of the run.
        built: Its task.
        inputs: Fingerprints of data and weights.
        examples: The training split.
        frozen: The frozen weights, on `mesh`.
        mesh: Devices to compute on.
        workdir: Folder of the run, which keeps the caches.
        stop: A request ends the work. The next call resumes there.

    Raises:
        UserError: If images or latents cannot be cached, or if cached images would
            never be read.
        Stopped: If `stop` was requested.
    """
    unread = built.posterior and not isinstance(config.data, ControlDataConfig)
    if config.data.cache is not None and unread:
        raise UserError(
            f"config.data.cache={config.data.cache} has no effect with "
            "config.model.cache_latents=True, which reads each image once. Set it to "
            "None"
        )
    examples = cache_images(
        examples, config.data, lambda: stop.signal.name if stop.signal else None
    )
    if built.posterior is None:
        return examples
    data = microbatch(config)
    where = (frozen, mesh)
    latents = cache_latents(
        examples, data, inputs, built.posterior, *where, workdir / "latents", stop
    )
    if built.embed_text is None:
        return latents
    return cache_captions(
        latents,
        built.tokenizer,
        built.base,
        built.embed_text,
        *where,
        data.batch_size,
        workdir / "captions",
        stop,
    )
