"""From Open-i's two archives to files: fetched where asked for, unpacked where need be.

Open-i publishes no checksums. So what is fetched is held to the length that the server
says, and when it is unpacked to the checksum that gzip keeps in it; a note in prepare's
report has the SHA-256 of each archive, to compare.
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
    """One of the two.

    Attributes:
        name: What the published file is called.
        holds: What is in it, in words.
        suffixes: How the names of those files end.
    """

    name: str
    holds: str
    suffixes: tuple[str, ...]


ARCHIVES = (
    Archive("NLMCXR_reports.tgz", "reports (CXR1.xml or 1.xml, …)", (".xml",)),
    Archive("NLMCXR_png.tgz", "images (CXR1_1_IM-0001-3001.png, …)", IMAGE_SUFFIXES),
)


def complete_source(folder: Path, download: bool = False) -> tuple[str, ...]:
    """See to it that reports and images lie under a folder as files.

    An archive is unpacked, into a folder beside it that has its name, if none of what
    it holds is there yet.

    Args:
        folder: Where archives or files are, in any subfolder.
        download: Whether to fetch, into `folder`, an archive that is not there and none
            of whose files are.

    Returns:
        A sentence about each archive that is there.

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
    """Whether some of an archive's files are there, so that it was unpacked before."""
    found = find_files(folder, archive.suffixes).images
    return any(file.suffix == ".xml" or image_key(file.stem)[0] for file in found)
