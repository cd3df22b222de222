"""Write, replace, list and lock files and folders, so that none is ever half written.

A new file or folder is written under a hidden name beside the final one, and renamed
when it is complete. If a process is killed at any moment, the old content or the new
content remains:

* ``.NAME.incomplete`` is unfinished. If a killed process left it, the next call removes
  it.
* ``.NAME.before`` is the old folder while a new one takes its place. If NAME is
  missing, this is the only complete folder, and `recover` puts it back.

All other modules of medjax write only with this module, so that only this module
handles paths of buckets. Some libraries write their files themselves (orbax, TFDS,
TensorBoard, tokenizers), but into folders made here.
"""

import contextlib
import errno
import fnmatch
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeVar

from medjax.errors import UserError

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]
# What a file system without locks answers.
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
P = TypeVar("P", bound=PurePath)


class Locked(UserError):
    """Another process is writing there."""


def write_bytes(path: AnyPath, content: bytes, durable: bool = True) -> None:
    """Write a file; see `writing`."""
    with writing(path, durable) as file:
        file.write(content)


def write_text(path: AnyPath, text: str) -> None:
    """Write a file of UTF-8 text with unchanged line ends; see `writing`."""
    write_bytes(path, text.encode())


def write_json(
    path: AnyPath, value: Any, indent: int | None = 2, sort_keys: bool = False
) -> None:
    """Write a value as JSON, with a final line end; see `writing`."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=sort_keys) + "\n")


@contextlib.contextmanager
def writing(path: AnyPath, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` if the block raises no error.

    Its folder is made if it is missing. Only one process at a time may write a path;
    see `lock`.

    Args:
        path: The file to make or replace.
        durable: Whether to wait for the disk, so that even a power cut leaves the old
            content or the new one.

    Raises:
        OSError: If the disk is full or fails. The old file is then unchanged.
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
    """Open a file to append to it; make it if it is missing.

    If the process is killed, the last addition may be cut short. The reader must drop
    it.
    """
    return _epath(path).open("ab")


def truncate(path: AnyPath, size: int) -> None:
    """Cut a file to `size` bytes."""
    os.truncate(path, size)


def make_folder(path: AnyPath) -> None:
    """Make a folder and its parents, unless it exists."""
    _epath(path).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder for temporary files; remove it on exit."""
    with tempfile.TemporaryDirectory(prefix="medjax-") as name:
        yield Path(name)


@contextlib.contextmanager
def scratch_folder(path: P) -> Iterator[P]:
    """Yield an empty folder; on exit remove it if it still exists.

    An existing folder, which an earlier process left, is removed first.

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
    """Yield an empty hidden folder that replaces `path` if the block raises no error.

    Its parent is made if it is missing.

    Raises:
        UserError: If another process is writing it.
        OSError: If the disk fails. The old folder is then unchanged.
    """
    with scratch_folder(_hidden(path, "incomplete")) as folder:
        recover(path)
        yield folder
        replace_folder(folder, path)


def replace_folder(new: AnyPath, path: PurePath) -> None:
    """Move a finished folder to `path` on the same disk; remove the old folder there.

    Raises:
        OSError: If the disk fails. The old folder is then unchanged.
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
    """Put the old folder back, or remove it if the new one is in place."""
    before = _hidden(path, "before")
    if not _epath(before).exists():
        return
    if _epath(path).exists():
        _clear(before)
    else:
        rename(before, path)


def is_leftover(path: Path) -> bool:
    """Tell whether a path is hidden: unfinished, or replaced by a newer folder.

    ``.NAME.before`` is not a leftover if NAME is missing, because `recover` needs it.
    """
    if match := re.fullmatch(r"\.(.+)\.before", path.name):
        return path.with_name(match[1]).exists()
    return path.name.startswith(".")


def rename(path: AnyPath, new: AnyPath) -> None:
    """Rename a file or folder on the same disk. The new name must not exist."""
    _epath(path).rename(new)


def remove(path: AnyPath) -> None:
    """Remove a file, a link, or a folder with its content, if it exists."""
    target = _epath(path)
    if target.is_dir() and not os.path.islink(path):
        target.rmtree()
    else:
        target.unlink(missing_ok=True)


def listed(folder: P, pattern: str = "*") -> list[P]:
    """Return the sorted content of a folder; nothing if the folder is missing.

    Args:
        folder: Folder to list, without the content of folders inside it.
        pattern: Pattern of the names, as in a shell. It also matches hidden names.
    """
    home = _epath(folder)
    if not home.is_dir():
        return []
    _, folders, files = next(home.walk(on_error=_raise))
    names = fnmatch.filter([*folders, *files], pattern)
    return sorted(folder / name for name in names)


def files_below(folder: P) -> Iterator[P]:
    """Yield every file in a folder and in folders inside it, in no fixed order."""
    for home, _, files in _epath(folder).walk(on_error=_raise):
        yield from (type(folder)(home, name) for name in files)


@contextlib.contextmanager
def lock(path: PurePath) -> Iterator[None]:
    """Hold the lock for writing `path`. It is released when the process ends, too.

    A file system without locks, such as Google Drive's, gives only a warning.

    Raises:
        Locked: If another process has the lock.
    """
    # Imported here, because only writers need it.
    import filelock

    file = _hidden(path, "lock")
    # A lock that is only a file would outlive a machine that disappears.
    held = filelock.FileLock(os.fspath(file), timeout=0, fallback_to_soft=False)
    try:
        held.acquire()
    except filelock.Timeout as error:
        raise Locked(
            f"{path}: another process is writing it. Wait until that process ends"
        ) from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        logger.warning("%s has no locks: let only one process write there", path.parent)
    try:
        yield
    finally:
        # Removed before the release. A process that locks the removed file notices
        # that and retries.
        remove(file)
        held.release()


def free_bytes(folder: AnyPath) -> int:
    """Return the bytes that this user can still write to the disk of a folder."""
    return shutil.disk_usage(folder).free


def check_writable(folder: AnyPath) -> None:
    """Raise OSError if no file can be made in a folder. Leave no file there."""
    tempfile.TemporaryFile(dir=folder).close()


def _hidden(path: P, ending: str) -> P:
    """Return ``.NAME.ending`` beside a path."""
    return path.with_name(f".{path.name.removeprefix('.')}.{ending}")


def _clear(path: AnyPath) -> None:
    """Remove a path that is not needed; if the disk fails, log a warning instead."""
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
    """Return the path, on a disk or in a bucket, as ``etils.epath.Path``."""
    # Imported here, because it takes 0.2 s and --help does not write.
    from etils import epath

    return epath.Path(path)
