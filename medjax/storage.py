"""Write, replace, list and lock files and folders: whole or not at all.

What is being written has a hidden name beside its own, and takes that name at the end.
A process that is killed at any moment leaves the old content or the new one:

* ``.NAME.incomplete`` is unfinished, or was when a process was killed. The next call
  removes it.
* ``.NAME.before`` is the old folder while a new one takes its place. Where NAME itself
  is missing, it is the only whole one, and `recover` puts it back.

All other modules of medjax write by this one alone, so that paths of buckets need to be
known here only. Libraries write by themselves (orbax, TFDS, TensorBoard, tokenizers),
but into folders made here.
"""

import contextlib
import fnmatch
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeVar

from medjax.errors import UserError

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]
P = TypeVar("P", bound=PurePath)


def write_bytes(path: AnyPath, content: bytes, durable: bool = True) -> None:
    """Write a file; see `writing`."""
    with writing(path, durable) as file:
        file.write(content)


def write_text(path: AnyPath, text: str) -> None:
    """Write a file of UTF-8 text, line ends as they are; see `writing`."""
    write_bytes(path, text.encode())


def write_json(
    path: AnyPath, value: Any, indent: int | None = 2, sort_keys: bool = False
) -> None:
    """Write a value as JSON, with a line end; see `writing`."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=sort_keys) + "\n")


@contextlib.contextmanager
def writing(path: AnyPath, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of `path` if nothing goes wrong.

    Its folder is made if need be. One process at a time may write a path; see `lock`.

    Args:
        path: The file to make or replace.
        durable: Wait for the disk, so that a power cut, too, leaves the old content or
            the new one.

    Raises:
        OSError: If the disk is full or fails. The old file is then as it was.
    """
    target = _epath(path)
    beside = _hidden(target, "incomplete")
    make_folder(target.parent)
    try:
        with beside.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def appending(path: AnyPath) -> BinaryIO:
    """Open a file to add to its end, and make it if need be.

    A kill may cut what was added last short: the reader must drop it.
    """
    return _epath(path).open("ab")


def truncate(path: AnyPath, size: int) -> None:
    """Cut a file to `size` bytes."""
    os.truncate(path, size)


def make_folder(path: AnyPath) -> None:
    """Make a folder, and those above it, unless it exists."""
    _epath(path).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder for temporary files; remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="medjax-") as name:
        yield Path(name)


@contextlib.contextmanager
def scratch_folder(path: P) -> Iterator[P]:
    """Yield an empty folder, and remove what is left of it at the end.

    What an earlier process left there is removed first.

    Raises:
        UserError: If another process is writing there.
    """
    make_folder(path.parent)
    with lock(path):
        if _epath(path).exists():
            logger.warning("removing %s, which an interrupted command left", path)
            remove(path)
        make_folder(path)
        try:
            yield path
        finally:
            _clear(path)


@contextlib.contextmanager
def replacing_folder(path: P) -> Iterator[P]:
    """Yield an empty hidden folder that takes the place of `path` if all goes well.

    Its parent is made if need be.

    Raises:
        UserError: If another process is writing it.
        OSError: If the disk refuses. The old folder is then as it was.
    """
    with scratch_folder(_hidden(path, "incomplete")) as folder:
        recover(path)
        yield folder
        replace_folder(folder, path)


def replace_folder(new: AnyPath, path: PurePath) -> None:
    """Move a finished folder to a place on the same disk; remove what was there.

    Raises:
        OSError: If the disk refuses. The old folder is then as it was.
    """
    recover(path)
    try:
        if _epath(path).exists():
            _sync(new)
            rename(path, _hidden(path, "before"))
        rename(new, path)
    finally:
        recover(path)


def recover(path: PurePath) -> None:
    """Put the old folder back, or remove it if the new one is in its place."""
    before = _hidden(path, "before")
    if not _epath(before).exists():
        return
    if _epath(path).exists():
        _clear(before)
    else:
        rename(before, path)


def is_leftover(path: Path) -> bool:
    """Tell whether a name is hidden: unfinished, or replaced by a newer folder.

    A folder set aside, whose own place is empty, is no leftover: `recover` takes it.
    """
    if match := re.fullmatch(r"\.(.+)\.before", path.name):
        return path.with_name(match[1]).exists()
    return path.name.startswith(".")


def rename(path: AnyPath, new: AnyPath) -> None:
    """Give a file or folder another name, which must be free, on the same disk."""
    _epath(path).rename(new)


def remove(path: AnyPath) -> None:
    """Remove a file, a link, or a folder with all in it; if it exists."""
    target = _epath(path)
    if target.is_dir() and not os.path.islink(path):
        target.rmtree()
    else:
        target.unlink(missing_ok=True)


def listed(folder: P, pattern: str = "*") -> list[P]:
    """Return what lies in a folder, sorted; nothing if there is no such folder.

    Args:
        folder: Where to look; folders inside it are not searched.
        pattern: Of the names, as in a shell; it matches hidden ones, too.
    """
    home = _epath(folder)
    if not home.is_dir():
        return []
    _, folders, files = next(home.walk(on_error=_raise))
    names = fnmatch.filter([*folders, *files], pattern)
    return sorted(folder / name for name in names)


def files_below(folder: P) -> Iterator[P]:
    """Yield every file in a folder and in those inside it, in no order."""
    for home, _, files in _epath(folder).walk(on_error=_raise):
        yield from (type(folder)(home, name) for name in files)


@contextlib.contextmanager
def lock(path: PurePath) -> Iterator[None]:
    """Be the only process that writes `path`; the lock ends with the process.

    Raises:
        UserError: If another process has the lock.
    """
    # Imported here: only writers need it.
    import filelock

    file = _hidden(path, "lock")
    held = filelock.FileLock(os.fspath(file), timeout=0)
    try:
        held.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"{path}: another process is writing it. Expected one process at a time: "
            "wait until the other one ends"
        ) from error
    try:
        yield
    finally:
        # Before it is released: whoever locks the removed file sees that, and retries.
        remove(file)
        held.release()


def check_writable(folder: AnyPath) -> None:
    """Raise OSError if no file can be made in a folder; leave none there."""
    tempfile.TemporaryFile(dir=folder).close()


def _hidden(path: P, ending: str) -> P:
    """Return ``.NAME.ending`` beside a path."""
    return path.with_name(f".{path.name.removeprefix('.')}.{ending}")


def _clear(path: AnyPath) -> None:
    """Remove what nobody needs; if the disk refuses, say so and leave it."""
    try:
        remove(path)
    except OSError as error:
        logger.warning("cannot remove %s: %s; remove it yourself", path, error)


def _sync(folder: AnyPath) -> None:
    """Wait until every file in a folder is on the disk."""
    for file in files_below(Path(folder)):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _raise(error: OSError) -> None:
    raise error


def _epath(path: AnyPath) -> Any:
    """Return the path, of a disk or a bucket, as ``etils.epath.Path``."""
    # Imported here: it takes 0.2 s, and --help writes nothing.
    from etils import epath

    return epath.Path(path)
