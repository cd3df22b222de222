"""Survey a source folder before any image is read. The builder uses the survey."""

import dataclasses
import functools
import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

from medjax.data.splits import SPLITS
from medjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image to store.

    Attributes:
        id: Name that is unique in the data set.
        image: File of the image.
        group: Name of the group that a split keeps together, such as a patient.
        text: Caption. "" means no caption.
        labels: Some of the names in `Survey.label_names`.
        conditioning_image: File of a ready-made control. None means no control.
        splits: Splits that the hash of the group may choose, the same for the whole
            group; see `data.splits`.
        attributes: All other facts, as texts or whole numbers.
    """

    id: str
    image: Path
    group: str
    text: str = ""
    labels: tuple[str, ...] = ()
    conditioning_image: Path | None = None
    splits: tuple[str, ...] = SPLITS
    attributes: Mapping[str, str | int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An image, a table row or a report that is left out, and the reason."""

    what: Literal["image", "row", "report"]
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """A data set as found: what to store, what to leave out, and its metadata.

    Attributes:
        name: Name of the data set in its metadata.
        entries: Images to store. All have the same attributes.
        damaged: Images and rows that are damaged.
        skipped: Intact images and rows that are left out, mostly without a match.
        counts: Numbers of files and rows found, for the report.
        group_name: Kind of group, such as "patient_id".
        label_names: All possible labels. Empty if the source has none.
        notes: Facts that users of the data need, one sentence each.
        description: One or two sentences about the data.
        licence: Terms of use.
        citation: BibTeX entry.
        homepage: Address of the source of the data.
    """

    name: str
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    counts: Mapping[str, int]
    damaged: tuple[Skipped, ...] = ()
    group_name: str = "group"
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    description: str = ""
    licence: str = ""
    citation: str = ""
    homepage: str = ""

    @functools.cached_property
    def captions(self) -> int:
        """Number of entries with a caption."""
        return sum(bool(entry.text.strip()) for entry in self.entries)


@dataclasses.dataclass(frozen=True)
class Found:
    """Files under a folder.

    Attributes:
        images: Files with a wanted suffix, sorted.
        damaged: Paths with such a suffix that are not files, and folders that cannot
            be opened.
        others: Number of other files, without those in hidden folders.
    """

    images: list[Path]
    damaged: list[Skipped]
    others: int

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of images and other files, for the report."""
        images = len(self.images) + len(self.damaged)
        return {"images_found": images, "other_files": self.others}


def find_images(folder: Path, suffixes: Collection[str]) -> Found:
    """Find image files under a folder; see `find_files`.

    Raises:
        UserError: If the folder does not exist or holds no image.
    """
    found = find_files(folder, suffixes)
    if not found.images:
        raise UserError(
            f"--source={folder}: no image found; expected files that end in "
            f"{', '.join(sorted(suffixes))}, in any subfolder"
        )
    return found


def find_files(folder: Path, suffixes: Collection[str]) -> Found:
    """Find files under a folder by their suffixes. Hidden files are left out.

    Links to folders are followed, except into a folder that contains the link.

    Raises:
        UserError: If the folder does not exist.
    """
    if not folder.is_dir():
        what = "is a file, expected a folder" if folder.exists() else "no such folder"
        raise UserError(f"--source={folder}: {what}")
    wanted = frozenset(suffixes)
    images: list[Path] = []
    damaged: list[Skipped] = []
    others = 0
    for path in _files(folder, wanted, damaged):
        if path.name.startswith(".") or path.suffix.lower() not in wanted:
            others += 1
        elif os.path.isfile(path):
            images.append(path)
        else:
            damaged.append(_image(path, folder, _not_a_file(path)))
    return Found(sorted(images), damaged, others)


def _files(
    folder: Path, wanted: frozenset[str], damaged: list[Skipped]
) -> Iterator[Path]:
    """Yield all non-folders under a folder. Add problems to `damaged`."""
    # Each folder, with the real paths of the folders that led to it.
    ahead = [(folder, frozenset({os.path.realpath(folder)}))]
    while ahead:
        here, parents = ahead.pop()
        for path in _children(here, folder, damaged):
            if not os.path.isdir(path):
                yield path
            elif not path.name.startswith("."):
                if path.suffix.lower() in wanted:
                    damaged.append(_image(path, folder, "is a folder"))
                real = os.path.realpath(path)
                if real in parents:
                    reason = "is a link to a folder that contains it; not followed"
                    damaged.append(_image(path, folder, reason))
                else:
                    ahead.append((path, parents | {real}))


def _children(here: Path, folder: Path, damaged: list[Skipped]) -> list[Path]:
    try:
        return list(here.iterdir())
    except OSError as error:
        reason = f"cannot be opened: {error.strerror}"
        damaged.append(_image(here, folder, reason))
        return []


def _image(path: Path, folder: Path, reason: str) -> Skipped:
    return Skipped("image", shown(path, folder), reason)


def _not_a_file(path: Path) -> str:
    if path.is_symlink():
        return f"is a link to {os.readlink(path)!r}, which does not lead to a file"
    return "is not a regular file"


def shown(path: Path, folder: Path) -> str:
    r"""Return the path below `folder` as one line of text.

    Bytes that are not UTF-8 become ``\xNN``; see `printable`.
    """
    name = os.fsencode(path.relative_to(folder).as_posix())
    return printable(name.decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Escape the control characters of a text, so that it is one line."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Zl", "Zp")
        else character
        for character in text
    )
