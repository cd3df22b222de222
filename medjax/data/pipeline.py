"""From a data set to batches, on grain: a stream that is a function of its position.

Example i of the global batch of step s is example number n = s B + i of the stream.
Epoch n // N has its own permutation of the N records, and what is drawn at random for
an example is keyed by (seed, n). So a run that resumes at any step, on any number of
hosts or workers, sees exactly what an uninterrupted one would have seen.
"""

import dataclasses
import functools
import itertools
import logging
import os
import sys
from collections.abc import Generator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from medjax.data.config import DataConfig
from medjax.data.examples import Example, make_example
from medjax.data.folds import select_fold
from medjax.data.phantoms.dataset import (
    open_phantoms,
    phantoms_fingerprint,
    phantoms_metadata,
)
from medjax.data.prepared import (
    Metadata,
    PreparedSource,
    fingerprint,
    read_metadata,
)
from medjax.data.roots import find_dataset
from medjax.data.tokens import tokenize
from medjax.data.workers import begin_work, born_deaf
from medjax.errors import UserError

_LOGGER = logging.getLogger(__name__)
# Batches that each worker holds ready; they are large, so few.
_READY = 2
# What folds are made of.
_LEARNING = ("train", "validation")


@runtime_checkable
class Source(Protocol):
    """Random access to the records of one split.

    A record is a dict: `image` (uint8, H W 3), `text`, `labels` (tuple of names), `id`,
    `parameters` (dict of what else is known), perhaps `conditioning_image` (uint8).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def open_dataset(config: DataConfig, split: str) -> Source:
    """Open one split: of the prepared data at `config.root`, or of the phantoms.

    With `config.folds`, training and validation are those of `config.fold`.

    Raises:
        UserError: If there is no such data set or split; it says what there is.
    """
    if config.folds and split in _LEARNING:
        there = dataset_metadata(config).splits
        plain = dataclasses.replace(config, folds=0, fold=0)
        sources = [open_dataset(plain, name) for name in _LEARNING if name in there]
        return select_fold(sources, config.folds, config.fold, split == "validation")
    if config.phantoms is not None:
        return open_phantoms(config.phantoms, split, config.image_size)
    return PreparedSource(find_dataset(config.root), split)


def dataset_metadata(config: DataConfig) -> Metadata:
    """Return what the data set at `config.root`, or the phantoms, say of themselves.

    Raises:
        UserError: If there is no such data set.
    """
    if config.phantoms is not None:
        return phantoms_metadata(config.phantoms)
    return read_metadata(find_dataset(config.root))


def dataset_identity(config: DataConfig) -> dict[str, str]:
    """Return the ``source`` and ``fingerprint`` of the data set, wherever it lies.

    ``controls`` says whether its records hold controls: "stored" or "none".

    Raises:
        UserError: If there is no such data set.
    """
    features = dataset_metadata(config).features
    known = {"controls": "stored" if "conditioning_image" in features else "none"}
    if config.phantoms is not None:
        return known | {
            "source": "phantoms",
            "fingerprint": phantoms_fingerprint(config.phantoms),
        }
    return known | {"source": config.root, "fingerprint": fingerprint(config.root)}


def record_ids(source: Source, config: DataConfig, step: int) -> list[str]:
    """Return the ids of the records in the global batch of `step`, in its order."""
    numbers = range(step * config.batch_size, (step + 1) * config.batch_size)
    shuffled = [_shuffled(n, len(source), config.seed) for n in numbers]
    return [str(source[n]["id"]) for n in shuffled]


def make_batches(
    source: Source,
    tokenizer: Any,
    config: DataConfig,
    *,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    shuffle: bool = True,
    repeat: bool = True,
) -> Generator[Example, None, None]:
    """Iterate over some rows of the global batches, from `start_step` on.

    Args:
        source: Records, from `open_dataset`.
        tokenizer: A `transformers` CLIP tokenizer, which must pickle; None for no
            captions.
        config: What to do.
        start_step: First global batch; the ones before are not computed.
        rows: Which rows of each global batch to make, in this order, where several
            hosts share them; all where None.
        shuffle: A new order each epoch; otherwise the order of storage.
        repeat: Go on for ever. Otherwise stop after one epoch, whose last batch is
            filled up with records from the beginning.

    Yields:
        What `examples.make_example` makes, stacked: images float32 (b, H, W, 3) and so
        on. Without `repeat`, example_weights float32 (b,): 1, or 0 for a record that
        only fills up, so that every record weighs the same.

    Raises:
        UserError: If the source is empty.
    """
    if len(source) == 0:
        raise UserError("the data set has no example in this split")
    rows = tuple(range(config.batch_size) if rows is None else rows)
    maker = _BatchMaker(source, tokenizer, config, rows, shuffle, repeat)
    # A fast tokenizer drops its own truncation at its first call: not in the threads.
    if tokenizer is not None:
        tokenize(tokenizer, "")
    epoch_steps = -(-len(source) // config.batch_size)
    return _stream(maker, start_step, sys.maxsize if repeat else epoch_steps)


def validation_batches(
    source: Source,
    tokenizer: Any,
    config: DataConfig,
    *,
    rows: Sequence[int] | None = None,
) -> Generator[Example, None, None]:
    """Iterate once over all records in their stored order, each with weight 1.

    The same batches every time: thresholds too are drawn the same. See `make_batches`
    for what fills the last one, and for `example_weights`.
    """
    return make_batches(
        source, tokenizer, config, rows=rows, shuffle=False, repeat=False
    )


@dataclasses.dataclass(frozen=True)
class _BatchMaker:
    """The function from a step to some rows of its batch; pickles."""

    source: Source
    tokenizer: Any
    config: DataConfig
    rows: tuple[int, ...]
    shuffle: bool
    repeat: bool

    def __call__(self, step: int) -> tuple[Example, str]:
        """Return the batch, and the lost end of a caption ("" where none was cut)."""
        config, count = self.config, len(self.source)
        numbers = [step * config.batch_size + row for row in self.rows]
        made = [
            make_example(
                self.source[self._index(number)],
                self.tokenizer,
                config,
                (config.seed, number),
            )
            for number in numbers
        ]
        examples = [example for example, _ in made]
        batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
        if not self.repeat:
            weights = [float(number < count) for number in numbers]
            batch["example_weights"] = np.asarray(weights, np.float32)
        return batch, next((lost for _, lost in made if lost), "")

    def _index(self, number: int) -> int:
        count = len(self.source)
        if not self.shuffle:
            return number % count
        return _shuffled(number, count, self.config.seed)


def _shuffled(number: int, count: int, seed: int) -> int:
    """Return which of `count` records example `number` of the stream is."""
    epoch, position = divmod(number, count)
    return int(_permutation(seed, epoch, count)[position])


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> Int[np.ndarray, " n"]:
    """Return the order of one epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def _stream(
    maker: _BatchMaker, start: int, stop: int
) -> Generator[Example, None, None]:
    """Compute the batches ahead of their use, by threads or by processes."""
    import grain
    from absl import flags

    # grain reads absl flags, which only `app.run` parses; its defaults are right.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    workers = maker.config.workers
    threads = 1 if workers else min(4, os.cpu_count() or 1)
    steps = grain.MapDataset.range(start, stop).map(maker)
    batches = steps.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if workers:
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=_READY
            ),
            worker_init_fn=begin_work,
        )
    iterator = iter(batches)
    warned = False
    try:
        # The workers start with the first batch.
        with born_deaf():
            made = itertools.chain(list(itertools.islice(iterator, 1)), iterator)
        for batch, lost in made:
            if lost and not warned:
                _LOGGER.warning(
                    "a caption is longer than 77 tokens; cut off: '%s' (further ones "
                    "are cut without a word)",
                    lost,
                )
                warned = True
            yield batch
    finally:
        iterator.close()
