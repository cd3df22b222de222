"""Unpack .tgz archives completely or not at all, safely, with several writer threads.

Decompression is one stream, which uses one core. Meanwhile a pool of threads writes the
files. Only folders and regular files below one folder are created. gzip stores a
checksum of the content at the end of the archive, so each archive is read to its end.
"""

import collections
import functools
import gzip
import hashlib
import posixpath
import tarfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from medjax import storage
from medjax.errors import UserError

_WRITERS = 8
# Files in memory at a time. A radiograph takes less than a megabyte.
_WAITING = 64
_CHUNK = 1 << 20
_DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    # The archive has a file and a folder with the same name.
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)


def digest(archive: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tgz archive into a new folder.

    Args:
        archive: Path of the archive.
        folder: Folder to create. It appears when it is complete.

    Raises:
        UserError: If the archive is damaged; if it holds links, devices, a file twice
            or names that lead out of the folder; or if `folder` exists or cannot be
            created.
        OSError: If the disk is full or fails.
    """
    if folder.exists():
        raise UserError(
            f"{folder}: already exists, so {archive.name} cannot be unpacked there; "
            "rename or remove it"
        )
    try:
        storage.check_writable(folder.parent)
    except OSError as error:
        raise UserError(
            f"{archive.parent}: {archive.name} cannot be unpacked there: "
            f"{error.strerror}; unpack it elsewhere and set --source to that folder"
        ) from error
    try:
        with storage.replacing_folder(folder) as staging:
            _unpack(archive, staging)
    except _DAMAGE as error:
        raise UserError(
            f"{archive}: is damaged, or not a .tgz archive: {error}; remove it and "
            "download it again"
        ) from error


def _unpack(archive: Path, folder: Path) -> None:
    waiting: collections.deque[Future[None]] = collections.deque()
    names: set[str] = set()
    size = archive.stat().st_size
    with (
        archive.open("rb") as packed,
        gzip.open(packed) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
        ThreadPoolExecutor(_WRITERS) as pool,
        tqdm(
            total=size, desc=archive.name, unit="B", unit_scale=True, delay=1.0
        ) as bar,
    ):
        for member in tar:
            _check(archive, folder, member, names)
            # This is None for a folder. Writing a file creates the folders above it.
            if (opened := tar.extractfile(member)) is not None:
                write = functools.partial(storage.write_bytes, durable=False)
                target = folder / member.name
                waiting.append(pool.submit(write, target, opened.read()))
            if len(waiting) > _WAITING:
                waiting.popleft().result()
            bar.update(packed.tell() - bar.n)
        while stream.read(_CHUNK):
            pass
        for written in waiting:
            written.result()


def _check(
    archive: Path, folder: Path, member: tarfile.TarInfo, names: set[str]
) -> None:
    """Refuse all but plain files and folders below `folder`; add to `names`."""
    fault = "" if member.isfile() or member.isdir() else "is not a plain file"
    try:
        inside = tarfile.data_filter(member, str(folder))
    except tarfile.FilterError as error:
        raise UserError(
            f"{archive}: refused, and nothing was extracted: {error}"
        ) from error
    name = posixpath.normpath(inside.name)
    if member.isfile() and name in names:
        fault = "occurs twice"
    # data_filter makes absolute names relative. These archives should have none.
    if inside.name != member.name:
        fault = "has an absolute name"
    if fault:
        raise UserError(
            f"{archive}: refused, and nothing was extracted: '{member.name}' {fault}"
        )
    names.add(name)
