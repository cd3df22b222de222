"""Fetch and unpack Open-i's two archives, if requested and necessary.

Open-i publishes no checksums. So a download is checked against the length that the
server gives, and unpacking checks the checksum that gzip stores. A note in prepare's
report has the SHA-256 of each archive, for comparison.
"""

import dataclasses
from pathlib import Path

from medjax import storage
from medjax.data.archives import digest, unpack
from medjax.data.datasets.openi_reports import image_key
from medjax.data.datasets.survey import find_files
from medjax.data.download import download as fetch
from medjax.errors import UserError

ADDRESS = "https://openi.nlm.nih.gov/imgs/collections"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Archive:
    """One of the two archives.

    Attributes:
        name: Name of the published file.
        holds: Content of the archive, in words.
        suffixes: Suffixes of the files in it.
    """

    name: str
    holds: str
    suffixes: tuple[str, ...]


ARCHIVES = (
    Archive("NLMCXR_reports.tgz", "reports (CXR1.xml or 1.xml, …)", (".xml",)),
    Archive("NLMCXR_png.tgz", "images (CXR1_1_IM-0001-3001.png, …)", IMAGE_SUFFIXES),
)


def complete_source(folder: Path, download: bool = False) -> tuple[str, ...]:
    """Make sure that reports and images are under a folder as files.

    An archive is unpacked if none of its files is under the folder yet. They are
    written into a folder beside the archive, which has the name of the archive.

    Args:
        folder: Folder with archives or files, in any subfolder.
        download: Whether to fetch an archive into `folder` if the archive and all its
            files are missing.

    Returns:
        A sentence about each archive that is present.

    Raises:
        UserError: If the folder, reports or images are missing, or an archive cannot be
            fetched or unpacked.
        OSError: If the disk is full or fails.
    """
    if download:
        storage.make_folder(folder)
    notes = []
    for archive in ARCHIVES:
        file = _find(folder, archive)
        has_files = _has_files(folder, archive)
        if file is None and not has_files:
            if not download:
                raise UserError(
                    f"--source={folder}: has neither {archive.holds} nor "
                    f"{archive.name}; --download fetches it from {ADDRESS}"
                )
            file = folder / archive.name
            fetch(f"{ADDRESS}/{archive.name}", file)
        if file is not None:
            if not has_files:
                unpack(file, file.with_suffix(""))
            size = file.stat().st_size
            notes.append(f"{file.name}: {size:,} bytes, sha256 {digest(file)}")
    return tuple(notes)


def _find(folder: Path, archive: Archive) -> Path | None:
    found = find_files(folder, (".tgz",)).images
    return next((file for file in found if file.name == archive.name), None)


def _has_files(folder: Path, archive: Archive) -> bool:
    """Return whether any file of an archive exists, so that it was unpacked before."""
    found = find_files(folder, archive.suffixes).images
    return any(file.suffix == ".xml" or image_key(file.stem)[0] for file in found)
