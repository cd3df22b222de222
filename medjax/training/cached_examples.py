"""Compute before training what frozen networks make of images and captions."""

from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh

from medjax.arrays import Params
from medjax.data.pipeline import Source
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
    """Return the training split with cached latents and captions, if the task has them.

    Args:
        config: Config of the run.
        built: Its task. Its functions say what is cached.
        inputs: Fingerprints of data and weights.
        examples: The training split.
        frozen: The frozen weights, on `mesh`.
        mesh: Devices to compute on.
        workdir: Folder of the run, which keeps the caches.
        stop: A request ends the work. The next call resumes there.

    Raises:
        UserError: If the latents of these images cannot be cached.
        Stopped: If `stop` was requested.
    """
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
