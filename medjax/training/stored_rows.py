"""Rows that frozen networks compute once and keep on disk: arrays, and a JSON record.

An interrupted call leaves a folder ``NAME.incomplete``. The next call continues it. On
several hosts, all compute, and the first one writes to the disk that they share.
"""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax import distributed, storage
from medjax.errors import Stopped
from medjax.logs import ProgressBar
from medjax.runs.checksums import damage, write_checksums
from medjax.training.stop import StopRequest

logger = logging.getLogger(__name__)

RECORDS = "records.jsonl"
STORED = np.dtype(np.float16)

Shape = tuple[int, ...]
Rows = tuple[Sequence[np.ndarray], Sequence[Mapping[str, Any]]]
"""The arrays of some rows, and the record of each row."""


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """The rows in a complete folder.

    Attributes:
        folder: The folder: a NumPy file per array, and a line of JSON per row.
        names: Names of the arrays.
    """

    folder: Path
    names: tuple[str, ...]

    @functools.cached_property
    def records(self) -> list[dict[str, Any]]:
        """The record of each row."""
        lines = (self.folder / RECORDS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def arrays(self, row: int) -> dict[str, np.ndarray]:
        """Return the arrays of a row, float16, by name."""
        return {name: np.asarray(x[row]) for name, x in self._arrays.items()}

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        files = {name: self.folder / f"{name}.npy" for name in self.names}
        return {name: np.load(file, mmap_mode="r") for name, file in files.items()}

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes map the files themselves.
        return {"folder": self.folder, "names": self.names}


def compute_rows(
    folder: Path,
    shapes: Mapping[str, Shape],
    count: int,
    what: str,
    batches: Callable[[int], Generator[Rows]],
    stop: StopRequest,
) -> StoredRows:
    """Return the rows in `folder`; compute those that are missing. All hosts call it.

    Args:
        folder: Folder of the rows, on a disk that all hosts share.
        shapes: Shape of a row of each array, by name.
        count: Number of rows.
        what: What a row is about, such as "latents", for messages.
        batches: Yields batches from a row on. A batch has the arrays in the order of
            `shapes`. The last batch may have more rows than needed.
        stop: A request ends the work between two batches. The next call resumes there.

    Raises:
        Stopped: If a host was asked to stop.
    """
    first = jax.process_index() == 0
    done = distributed.gather(_rows_done(folder, shapes, count) if first else 0)[0]
    if done < 0:
        return StoredRows(folder, tuple(shapes))
    logger.info("caching %s: %d", what, count)
    if done:
        logger.info("%d of %d are cached already", done, count)
    begun = _incomplete(folder)
    bar = ProgressBar(
        f"caching {what}", count, "rows", done, terminal=None if first else False
    )
    votes = distributed.Agreement()
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        append = None
        if first:
            append = stack.enter_context(_appending(begun, shapes, count))
        rows = stack.enter_context(contextlib.closing(batches(done)))
        while done < count:
            if votes.largest(int(stop.made)):
                raise Stopped(
                    f"asked to stop after caching {what}: {done} of {count}, before "
                    "the first step; the same command resumes the run"
                )
            arrays, records = next(rows)
            found = min(len(records), count - done)
            if append:
                append([x[:found] for x in arrays], records[:found])
            done += found
            bar.update(found)
    if first:
        write_checksums(begun)
        storage.rename(begun, folder)
    # The other hosts read the folder when it has its name.
    distributed.wait_for_all()
    logger.info("cached %s in %s: %d", what, folder, count)
    return StoredRows(folder, tuple(shapes))


def _incomplete(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.incomplete")


def _rows_done(folder: Path, shapes: Mapping[str, Shape], count: int) -> int:
    """Return the number of rows of an interrupted call; -1 if `folder` is complete."""
    if folder.is_dir() and (reason := damage(folder)):
        logger.warning("computing %s again: %s", folder, reason)
        storage.remove(folder)
    if folder.is_dir():
        return -1
    begun = _incomplete(folder)
    storage.make_folder(begun)
    return _whole_rows(begun, shapes, count)


@contextlib.contextmanager
def _appending(
    folder: Path, shapes: Mapping[str, Shape], count: int
) -> Iterator[Callable[[Sequence[np.ndarray], Sequence[Mapping[str, Any]]], None]]:
    """Open the files of a folder; yield a function that appends rows to them."""
    with contextlib.ExitStack() as stack:
        *files, lines = (
            stack.enter_context(storage.appending(folder / name))
            for name in (*(f"{name}.npy" for name in shapes), RECORDS)
        )

        def append(
            arrays: Sequence[np.ndarray], records: Sequence[Mapping[str, Any]]
        ) -> None:
            named = zip(files, shapes.values(), arrays, strict=True)
            for file, shape, array in named:
                if file.tell() == 0:
                    file.write(_header((count, *shape)))
                # Written and not memory-mapped, so that a full disk raises an error
                # instead of ending the process.
                file.write(array.astype(STORED).tobytes())
            for record in records:
                lines.write((json.dumps(record) + "\n").encode())

        yield append


def _header(shape: Shape) -> bytes:
    """Return the beginning of a `.npy` file."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(STORED)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _whole_rows(folder: Path, shapes: Mapping[str, Shape], count: int) -> int:
    """Return how many rows are in all files of an interrupted call; cut the rest."""
    files = {folder / f"{name}.npy": shape for name, shape in shapes.items()}
    records = folder / RECORDS
    if not all(file.is_file() for file in (*files, records)):
        # The first batch was not written.
        storage.remove(folder)
        storage.make_folder(folder)
        return 0
    lines = records.read_bytes().splitlines(keepends=True)
    told = sum(line.endswith(b"\n") for line in lines)
    sizes = {file: STORED.itemsize * math.prod(row) for file, row in files.items()}
    starts = {file: len(_header((count, *row))) for file, row in files.items()}
    rows = [max(0, file.stat().st_size - starts[file]) // sizes[file] for file in files]
    done = min(told, *rows)
    storage.write_bytes(records, b"".join(lines[:done]))
    for file in files:
        storage.truncate(file, starts[file] + done * sizes[file] if done else 0)
    return done
