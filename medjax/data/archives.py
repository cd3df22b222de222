"""Unpack .tgz archives: whole or not at all, safely, and with several writers.

Decompression is one stream and uses one core; what comes out of it is written by a pool
of threads meanwhile. Nothing is made but folders and regular files, below one folder.
gzip keeps a checksum of the content at its end, to which each archive is read.
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
# Files in memory at a time; a radiograph has less than a megabyte.
_WAITING = 64
_CHUNK = 1 << 20
_DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    # A name that is a file's here and a folder's there.
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)


def digest(archive: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tgz archive into a folder that is not there yet.

    Args:
        archive: The file.
        folder: What to make; it appears once everything is in it.

    Raises:
        UserError: If the archive is damaged, or holds links, devices, a file twice, or
            names that lead out of the folder; or if `folder` is there, or cannot be
            made.
        OSError: If the disk is full or fails.
    """
    if folder.exists():
        raise UserError(
            f"{folder} is in the way of unpacking {archive.name}; rename or remove it"
        )
    try:
        storage.check_writable(folder.parent)
    except OSError as error:
        raise UserError(
            f"{archive.parent}: {archive.name} cannot be unpacked there: "
            f"{error.strerror}; unpack it elsewhere, and name that folder"
        ) from error
    try:
        with storage.replacing_folder(folder) as staging:
            _unpack(archive, staging)
    except _DAMAGE as error:
        raise UserError(
            f"{archive}: is damaged, or no .tgz: {error}; remove it and get it again"
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
            # None for a folder; those with something in them come with their files.
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
    """Refuse what is no plain file or folder below `folder`; remember its name."""
    fault = "" if member.isfile() or member.isdir() else "is no plain file"
    try:
        inside = tarfile.data_filter(member, str(folder))
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: refused, and nothing kept: {error}") from error
    name = posixpath.normpath(inside.name)
    if member.isfile() and name in names:
        fault = "is in it twice"
    # data_filter makes absolute names relative; none is expected here.
    if inside.name != member.name:
        fault = "has an absolute name"
    if fault:
        raise UserError(
            f"{archive}: refused, and nothing kept: '{member.name}' {fault}"
        )
    names.add(name)
