"""What a source folder holds, before any image is read: the input of the builder."""

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
    """One image that shall be stored.

    Attributes:
        id: Unique in the data set.
        image: Its file.
        group: What the split must not tear apart (a patient); see `splits`.
        text: Its caption; "" for none.
        labels: Names out of `Survey.label_names`.
        conditioning_image: File of a ready-made control, if there is one.
        splits: Where its group may go, by its hash; the same for the whole group.
        attributes: Whatever else is known: texts, and whole numbers.
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
    """An image, a row of a table or a report that is left out, and why."""

    what: Literal["image", "row", "report"]
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """A data set as found: what to store, what to leave out, and what to call it.

    Attributes:
        name: Name of the data set, as its metadata will say.
        entries: The images to store; all have the same attributes.
        damaged: Images and rows that are broken in themselves.
        skipped: Images and rows that are whole, and that nothing belongs to.
        counts: Numbers for the report: files and rows found.
        group_name: What a group is: "patient_id", say.
        label_names: All labels there can be; empty where the source has none.
        notes: What whoever trains on the data has to know, a sentence each.
        description: A sentence or two.
        licence: Terms of use.
        citation: BibTeX.
        homepage: Where the data come from.
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
        """How many entries have a caption."""
        return sum(bool(entry.text.strip()) for entry in self.entries)


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies under a folder.

    Attributes:
        images: Files whose name ends as wanted, sorted.
        damaged: What is called like that and is no file, and what cannot be opened.
        others: Number of other files; what lies in hidden folders is not counted.
    """

    images: list[Path]
    damaged: list[Skipped]
    others: int

    @property
    def counts(self) -> dict[str, int]:
        """The same in numbers, for the report."""
        images = len(self.images) + len(self.damaged)
        return {"images_found": images, "other_files": self.others}


def find_images(folder: Path, suffixes: Collection[str]) -> Found:
    """Look for image files under a folder; see `find_files`.

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
    """Look for files under a folder by how their names end; hidden ones are left out.

    Links to folders are followed, except into a folder that the link itself lies in.

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
    """Yield all under a folder that is no folder; add what is wrong to `damaged`."""
    # Each folder with the real paths of those that led to it.
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
                    reason = "is a link to a folder that it lies in; not followed"
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
        return f"is a link to {os.readlink(path)!r}, which leads to no file"
    return "is no regular file"


def shown(path: Path, folder: Path) -> str:
    r"""Return the path below `folder` as one line of text.

    What is no UTF-8 becomes ``\xNN``; see `printable`.
    """
    name = os.fsencode(path.relative_to(folder).as_posix())
    return printable(name.decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Return a text with its control characters escaped, so that it is one line."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Zl", "Zp")
        else character
        for character in text
    )
