"""Turn a data set into batches, with grain. The stream is a function of its position.

Let B be the global batch size. Example i of the global batch of step s is example
number n = s B + i of the stream. Each epoch n // N is another permutation of the N
records. (seed, n) determine the random numbers of an example. So a run can resume at
any step, on any number of hosts or workers. It sees exactly the examples of an
uninterrupted run.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int

from medjax.data.config import DataConfig
from medjax.data.examples import Example, make_batch
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
T = TypeVar("T")
# Results that each worker holds ready: few, because batches are large.
_READY = 2
# The splits that folds divide.
_LEARNING = ("train", "validation")


@runtime_checkable
class Source(Protocol):
    """Random access to the records of one split.

    A record is a dict: `image` (uint8, H W 3), `text`, `labels` (tuple of names), `id`,
    `parameters` (dict of all other facts), optionally `conditioning_image` (uint8).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def open_dataset(config: DataConfig, split: str) -> Source:
    """Open one split of the prepared data at `config.root`, or of the phantoms.

    With `config.folds`, `config.fold` selects the training and validation records.

    Raises:
        UserError: If the data set or split is missing. The message lists those that
            exist.
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
    """Return the metadata of the data set at `config.root`, or of the phantoms.

    Raises:
        UserError: If the data set is missing.
    """
    if config.phantoms is not None:
        return phantoms_metadata(config.phantoms)
    return read_metadata(find_dataset(config.root))


def dataset_identity(config: DataConfig) -> dict[str, str]:
    """Return the ``source``, ``fingerprint`` and ``controls`` of the data set.

    The fingerprint does not depend on the place of the data set. ``controls`` tells
    whether the records hold controls: "stored" or "none".

    Raises:
        UserError: If the data set is missing.
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
        source: Records from `open_dataset`.
        tokenizer: A `transformers` CLIP tokenizer that can be pickled. None means no
            captions.
        config: How to prepare the examples.
        start_step: First global batch. Earlier batches are not computed.
        rows: Rows of each global batch to make, in this order, if several hosts share
            it. None means all rows.
        shuffle: Whether each epoch has a new order. False keeps the stored order.
        repeat: Whether to continue without end. False stops after one epoch. Records
            from the beginning fill up its last batch.

    Yields:
        The arrays of `examples.make_example`, stacked: images float32 (b, H, W, 3) and
        so on. Without `repeat` also example_weights float32 (b,): 1, or 0 for a record
        that only fills up the batch. So every record has the same weight.

    Raises:
        UserError: If the source is empty.
    """
    if len(source) == 0:
        raise UserError("the data set has no example in this split")
    rows = tuple(range(config.batch_size) if rows is None else rows)
    maker = _BatchMaker(source, tokenizer, config, rows, shuffle, repeat)
    # A fast tokenizer resets its truncation at the first call. Threads must not do it.
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

    The batches, with their random thresholds, are the same every time. `make_batches`
    describes how the last batch is filled up, and `example_weights`.
    """
    return make_batches(
        source, tokenizer, config, rows=rows, shuffle=False, repeat=False
    )


@dataclasses.dataclass(frozen=True)
class _BatchMaker:
    """Function from a step to some rows of its batch. It can be pickled."""

    source: Source
    tokenizer: Any
    config: DataConfig
    rows: tuple[int, ...]
    shuffle: bool
    repeat: bool

    def __call__(self, step: int) -> tuple[Example, str]:
        """Return the batch, and the lost end of a caption ("" if none was cut)."""
        config, count = self.config, len(self.source)
        numbers = [step * config.batch_size + row for row in self.rows]
        records = (self.source[self._index(number)] for number in numbers)
        keys = [(config.seed, number) for number in numbers]
        batch, lost = make_batch(records, self.tokenizer, config, keys)
        if not self.repeat:
            weights = [float(number < count) for number in numbers]
            batch["example_weights"] = np.asarray(weights, np.float32)
        return batch, lost

    def _index(self, number: int) -> int:
        count = len(self.source)
        if not self.shuffle:
            return number % count
        return _shuffled(number, count, self.config.seed)


def _shuffled(number: int, count: int, seed: int) -> int:
    """Return the index, below `count`, of the record at example `number`."""
    epoch, position = divmod(number, count)
    return int(_permutation(seed, epoch, count)[position])


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> Int[np.ndarray, " n"]:
    """Return the order of one epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def _stream(
    maker: _BatchMaker, start: int, stop: int
) -> Generator[Example, None, None]:
    """Return the batches, and warn about the first caption that was cut."""
    warned = False
    with contextlib.closing(
        compute_ahead(maker, maker.config.workers, start, stop)
    ) as made:
        for batch, lost in made:
            if lost and not warned:
                _LOGGER.warning(
                    "a caption is longer than 77 tokens; cut off: '%s' (later captions "
                    "are cut without a warning)",
                    lost,
                )
                warned = True
            yield batch


def compute_ahead(
    function: Callable[[int], T], workers: int, start: int, stop: int
) -> Generator[T, None, None]:
    """Compute ``function(n)`` for n from start to stop - 1 before the use, in order.

    Args:
        function: It returns arrays in containers. It can be pickled.
        workers: Number of processes. 0 uses threads of this process.
        start: First number.
        stop: End of the numbers.
    """
    import grain
    from absl import flags

    # grain reads absl flags, which only `app.run` parses. Their defaults are right.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    threads = 1 if workers else min(4, os.cpu_count() or 1)
    numbers = grain.MapDataset.range(start, stop).map(function)
    results = numbers.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if workers:
        results = results.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=_READY
            ),
            worker_init_fn=begin_work,
        )
    iterator = iter(results)
    try:
        # The workers start with the first result.
        with born_deaf():
            first = list(itertools.islice(iterator, 1))
        yield from itertools.chain(first, iterator)
    finally:
        iterator.close()
