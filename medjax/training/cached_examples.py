"""Compute before training what every epoch needs: images, latents, captions."""

import logging
from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh

from medjax import distributed
from medjax.arrays import Params
from medjax.data.config import ControlDataConfig, DataConfig
from medjax.data.image_cache import cache_images
from medjax.data.pipeline import Source
from medjax.errors import Stopped, UserError
from medjax.runs.config import RunConfig
from medjax.tasks.interface import BuiltTask
from medjax.training.caption_cache import cache_captions
from medjax.training.latent_cache import cache_latents
from medjax.training.programs import microbatch
from medjax.training.stop import StopRequest

logger = logging.getLogger(__name__)


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
        UserError: If the split is empty, or images cannot be cached.
        Stopped: If `stop` was requested.
    """
    if len(examples) == 0:
        raise UserError(f"config.data.root={config.data.root}: no training example")
    if built.posterior is None or isinstance(config.data, ControlDataConfig):
        examples = _cached_images(examples, config.data, stop)
    elif config.data.cache is not None:
        logger.warning(
            "config.data.cache=%s is not used, because config.model.cache_latents=True "
            "reads each image only once",
            config.data.cache,
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


def _cached_images(source: Source, data: DataConfig, stop: StopRequest) -> Source:
    """Return the split from ``data.cache``, if it is set; stop if any host stops.

    Each host may have its own cache, so one may take hours while others take seconds.
    """
    stopped = None
    try:
        source = cache_images(
            source, data, lambda: stop.signal.name if stop.signal else None
        )
    except Stopped as error:
        stopped = error
    if any(distributed.gather(stopped is not None)):
        raise stopped or Stopped(
            "another host was asked to stop before the first step; the same command "
            "resumes the run"
        )
    return source
