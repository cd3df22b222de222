"""Decode and resize each image once, and keep the result on a local disk.

Every epoch needs the same resized pixels of an image. It needs the same edges, too, if
the thresholds are fixed. Everything random comes later. So batches of cached images
equal those of the data set, bit for bit.

The name of a cache is a digest of the data set and of everything that the pixels depend
on. The folder gets this name when it is complete. Until then, `NAME.incomplete` holds
the images that an interrupted run has made, and the next run makes the others.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from medjax import storage
from medjax.data.cached_records import ENDS, IMAGES, CachedImages, pack
from medjax.data.config import ControlDataConfig, DataConfig
from medjax.data.examples import resized
from medjax.data.folds import Selection
from medjax.data.pipeline import Source, compute_ahead, dataset_identity
from medjax.errors import Stopped, UserError
from medjax.logs import ProgressBar

logger = logging.getLogger(__name__)

# Raise it if the same facts give other pixels, or the files another form.
_VERSION = 1
_SECONDS_BETWEEN_LOOKS = 0.5


def cache_images(
    source: Any,
    config: DataConfig,
    stopped_by: Callable[[], str | None] = lambda: None,
) -> Source:
    """Return a source from `config.cache`; make its records if they are missing.

    Args:
        source: Result of `pipeline.open_dataset`.
        config: How examples are prepared, and the folder of all caches.
        stopped_by: Returns the name of a signal that asks to stop, or None. It is
            called between two images. The next call resumes there.

    Returns:
        The cached records; `source` if ``config.cache`` is None or it is empty.

    Raises:
        UserError: If the folder cannot be written, the disk is full, or an image is
            damaged.
        Stopped: If a signal asked to stop.
    """
    if config.cache is None or len(source) == 0:
        return source
    if isinstance(source, Selection):
        # Other folds then use the same caches.
        cached = [cache_images(one, config, stopped_by) for one in source.sources]
        return Selection(tuple(cached), source.places)
    folder = Path(config.cache).expanduser() / _name(source, config)
    try:
        storage.make_folder(folder.parent)
        _make(source, config, folder, stopped_by)
    except _UnreadableError as unreadable:
        raise unreadable.reason from None
    except OSError as error:
        raise UserError(
            f"config.data.cache={config.cache}: cannot be written: "
            f"{error.strerror or error}. Set it to a folder on a disk with more "
            "room, or to None"
        ) from error
    return CachedImages(folder)


class _UnreadableError(Exception):
    """An image could not be read or sent by a worker, because of `reason`."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _name(source: Any, config: DataConfig) -> str:
    """Return a name that no other images have."""
    import cv2
    import PIL

    identity = dataset_identity(config)
    facts = {
        "data": identity["fingerprint"],
        "split": source.split,
        "examples": len(source),
        "size": config.image_size,
        "resize": config.resize,
        "control": _control(config, identity["controls"] == "stored"),
        "libraries": [cv2.__version__, PIL.__version__],
        "version": _VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _control(config: DataConfig, stored: bool) -> Any:
    """Return what decides the cached control; None if no control is cached."""
    if not isinstance(config, ControlDataConfig):
        return None
    if stored:
        return "stored"
    if config.fixed_thresholds is None:
        return None
    backend: str = config.canny_backend
    if backend == "skimage":
        backend += version("scikit-image")
    return [*config.fixed_thresholds, config.canny_sigma, backend]


def _make(
    source: Source,
    config: DataConfig,
    folder: Path,
    stopped_by: Callable[[], str | None],
) -> None:
    """Make a cache, unless it exists; wait while another process makes it."""
    waits = False
    count = len(source)
    while not _is_complete(folder, count):
        _check_stop(stopped_by, 0, count)
        try:
            with storage.lock(folder):
                # Another process may have made it before this one got the lock.
                if not _is_complete(folder, count):
                    _replace(source, config, folder, stopped_by)
        except storage.Locked:
            if not waits:
                logger.info("waiting for another process, which makes %s", folder)
            waits = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _is_complete(folder: Path, count: int) -> bool:
    """Return whether a cache of `count` records exists, with files of their length."""
    try:
        ends = np.fromfile(folder / ENDS, np.int64)
        whole = int(ends[-1]) == (folder / IMAGES).stat().st_size
        return whole and len(ends) == count
    except (FileNotFoundError, IndexError):
        return False


def _replace(
    source: Source,
    config: DataConfig,
    folder: Path,
    stopped_by: Callable[[], str | None],
) -> None:
    """Make a cache, in place of a damaged one."""
    if folder.exists():
        logger.warning("the images in %s are cut; making them again", folder)
        storage.remove(folder)
    begun = folder.with_name(f"{folder.name}.incomplete")
    storage.make_folder(begun)
    _fill(source, config, begun, stopped_by)
    storage.rename(begun, folder)
    logger.info("cached %d images in %s", len(source), folder)


def _fill(
    source: Source,
    config: DataConfig,
    folder: Path,
    stopped_by: Callable[[], str | None],
) -> None:
    """Append the missing records to the files of a cache."""
    count, size = _whole_records(folder)
    packer = compute_ahead(_Packer(source, config), config.workers, count, len(source))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(packer))
        images, ends = (
            stack.enter_context(storage.appending(folder / name))
            for name in (IMAGES, ENDS)
        )
        bar = stack.enter_context(
            ProgressBar("caching images", len(source), "images", count)
        )
        begun = count
        # Nothing is left to do if only the final rename was missing.
        for packed in _readable(packer) if count < len(source) else ():
            if count == begun:
                _check_room(folder, len(packed), count, len(source))
            _check_stop(stopped_by, count, len(source))
            # Written and not memory-mapped, so that a full disk raises an error instead
            # of ending the process.
            size += len(packed)
            images.write(packed.data)
            ends.write(np.int64(size).tobytes())
            count += 1
            bar.update(1)
        for file in (images, ends):
            file.flush()
            os.fsync(file.fileno())


def _readable(packer: Iterator[Any]) -> Iterator[Any]:
    """Yield from `packer`; raise _UnreadableError instead of OSError."""
    try:
        yield from packer
    except OSError as error:
        raise _UnreadableError(error) from error


def _whole_records(folder: Path) -> tuple[int, int]:
    """Return number and bytes of the records of an interrupted call; cut the rest."""
    images, ends = folder / IMAGES, folder / ENDS
    if not (images.is_file() and ends.is_file()):
        storage.remove(folder)
        storage.make_folder(folder)
        return 0, 0
    whole = np.frombuffer(ends.read_bytes()[: ends.stat().st_size // 8 * 8], np.int64)
    # A crash of the machine may leave zeros.
    wrong = (np.diff(whole, prepend=0) <= 0) | (whole > images.stat().st_size)
    whole = whole[: wrong.argmax() if wrong.any() else len(whole)]
    size = int(whole[-1]) if len(whole) else 0
    storage.truncate(images, size)
    storage.truncate(ends, 8 * len(whole))
    return len(whole), size


def _check_room(folder: Path, record: int, count: int, total: int) -> None:
    """Log how much disk a cache needs; raise UserError if the disk is too small.

    Args:
        folder: Folder of the cache.
        record: Bytes of one record. Gray images need a third of the bytes of others.
        count: Number of records that exist.
        total: Number of all records.
    """
    home, free = folder.parent, storage.free_bytes(folder)
    logger.info(
        "caching %d resized images in %s, which takes about %.3g GB of disk (%.3g GB "
        "are free)",
        *(total, home, total * record / 1e9, free / 1e9),
    )
    needed = (total - count) * record
    if needed > free:
        raise UserError(
            f"config.data.cache={home}: {total - count} images need about "
            f"{needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free. Set it to a "
            "folder on a larger disk, or to None"
        )


def _check_stop(stopped_by: Callable[[], str | None], count: int, total: int) -> None:
    if name := stopped_by():
        raise Stopped(
            f"{name} after caching {count} of {total} images, before the first step; "
            "the same command resumes the run"
        )


@dataclasses.dataclass(frozen=True)
class _Packer:
    """Function from the index of a record to its bytes. It can be pickled."""

    source: Source
    config: DataConfig

    def __call__(self, index: int) -> UInt8[np.ndarray, " n"]:
        record = self.source[index]
        return pack(record, resized(record, self.config))
