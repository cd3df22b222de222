"""Survey any folder of images, with or without captions.

Captions are in `metadata.csv` or `metadata.jsonl` at the top of the folder, with one
row per image: `file_name` (relative to the folder) and `text`. Two columns are
optional: `conditioning_image` (the file of a ready-made control) and a column to split
by. This is the layout of Hugging Face's image folders. Without such a file, every image
is used with an empty caption.

Labels, if requested, are the names of the images' folders; see `classes`. They do not
change the splits.
"""

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from medjax.data.datasets.classes import with_classes
from medjax.data.datasets.survey import (
    Entry,
    Found,
    Skipped,
    Survey,
    find_images,
    shown,
)
from medjax.data.datasets.tables import Row, Table, read_csv, read_jsonl
from medjax.data.readers import SUFFIXES
from medjax.errors import UserError

_READERS = {"metadata.csv": read_csv, "metadata.jsonl": read_jsonl}
# Types of other files that may have captions, and how many of them a note names.
_NAMED = 3
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".parquet")

_NOTE = (
    "split by image, so one patient's images may be in several splits; --group_column "
    "keeps them together"
)


def survey_folder(
    source: str | Path, group_column: str = "", classes_from_folders: bool = False
) -> Survey:
    """Survey a folder of images.

    Args:
        source: The folder.
        group_column: Column whose values the split keeps together. "" puts every image
            in a separate group.
        classes_from_folders: Whether labels are the names of folders.

    Raises:
        UserError: If the folder, images, rows, columns or classes are missing.
    """
    folder = Path(source)
    survey = _survey(folder, group_column)
    if not group_column:
        survey = dataclasses.replace(survey, notes=(*survey.notes, _NOTE))
    return with_classes(survey, folder) if classes_from_folders else survey


def _survey(folder: Path, group_column: str) -> Survey:
    found = find_images(folder, SUFFIXES)
    tables = [name for name in _READERS if (folder / name).is_file()]
    if len(tables) > 1:
        raise UserError(f"{folder}: has {' and '.join(tables)}; keep one of them")
    if tables:
        wanted = ["file_name", "text", *([group_column] if group_column else [])]
        table = _READERS[tables[0]](folder / tables[0], wanted)
        return _with_captions(folder, found, table, group_column)
    if group_column:
        raise UserError(
            f"--group_column={group_column}: {folder} has no {' or '.join(_READERS)}. "
            "Expected one of these with this column"
        )
    return _without_captions(folder, found)


def _without_captions(folder: Path, found: Found) -> Survey:
    seen: Counter[str] = Counter()
    ids = [_unique(shown(image, folder), seen) for image in found.images]
    return Survey(
        name="folder",
        entries=tuple(
            Entry(id=name, image=image, group=name)
            for name, image in zip(ids, found.images, strict=True)
        ),
        skipped=(),
        damaged=tuple(found.damaged),
        counts=found.counts,
        notes=_unread_tables(folder),
        description=_description(folder),
    )


def _unread_tables(folder: Path) -> tuple[str, ...]:
    """Return a note about files that may have captions but are not read."""
    tables = sorted(
        shown(path, folder)
        for path in folder.iterdir()
        if path.suffix.lower() in _TABLES and not path.name.startswith(".")
    )
    if not tables:
        return ()
    return (
        f"not read: {', '.join(tables[:_NAMED])}{' …' if tables[_NAMED:] else ''}; "
        f"captions are read from {' or '.join(_READERS)} (file_name, text)",
    )


def _with_captions(
    folder: Path, found: Found, table: Table, group_column: str
) -> Survey:
    names = {str(path.relative_to(folder)): path for path in found.images}
    # An exact name comes before a name that is the same after normalisation.
    images = {_normal(name): path for name, path in names.items()} | names
    controlled = any(row.get("conditioning_image") for _, row in table.rows)
    entries: list[Entry] = []
    unmatched: list[Skipped] = []
    seen: Counter[str] = Counter()
    for line, row in table.rows:
        entry = _entry(row, images, controlled, group_column)
        if isinstance(entry, str):
            unmatched.append(table.leave_out(line, row["file_name"], entry))
        else:
            # An image may have several captions, each in its own row.
            name = _unique(shown(entry.image, folder), seen)
            group = entry.group if group_column else shown(entry.image, folder)
            entries.append(dataclasses.replace(entry, id=name, group=group))
    if not entries:
        raise UserError(
            f"{table.path}: no row names an image that exists; first: "
            f"{unmatched[0].name}: {unmatched[0].reason}"
        )
    used = {entry.image for entry in entries}
    used |= {e.conditioning_image for e in entries if e.conditioning_image}
    spare = [
        Skipped("image", shown(image, folder), f"no usable row in {table.path.name}")
        for image in found.images
        if image not in used
    ]
    return Survey(
        name="folder",
        entries=tuple(entries),
        skipped=(*unmatched, *spare),
        damaged=(*found.damaged, *table.damaged),
        counts=found.counts
        | {"other_files": found.others - 1, "rows_found": table.count},
        description=_description(folder),
    )


def _entry(
    row: Row, images: Mapping[str, Path], controlled: bool, group_column: str
) -> Entry | str:
    """Return the entry of a row, or the reason why the row cannot be used."""
    name, control = row["file_name"], row.get("conditioning_image", "")
    image, condition = _find(name, images), _find(control, images)
    reason = ""
    if image is None:
        reason = _absent(name)
    elif controlled and not control:
        reason = "no conditioning_image, but other rows have one"
    elif controlled and condition is None:
        reason = f"its conditioning_image '{control}': {_absent(control)}"
    elif group_column and not row[group_column]:
        reason = f"no value for '{group_column}', the column to split by"
    if image is None or reason:
        return reason
    group = row[group_column] if group_column else ""
    return Entry("", image, group, row["text"], conditioning_image=condition)


def _find(name: str, images: Mapping[str, Path]) -> Path | None:
    exact = images.get(os.path.normpath(name)) if name else None
    return exact or images.get(_normal(name))


def _absent(name: str) -> str:
    """Return the reason why a name in the table matches no image of the folder."""
    if not name:
        return "names no file"
    if Path(name).is_absolute() or _normal(name).startswith(".."):
        return "is outside the folder; expected a name relative to it"
    if Path(name).suffix.lower() not in SUFFIXES:
        return f"is not named as an image; expected {', '.join(sorted(SUFFIXES))}"
    return "its file does not exist"


def _normal(name: str) -> str:
    """Normalise a name to compare it. macOS writes é as two characters, others as one.

    Source: Unicode Standard Annex 15, form C.
    """
    return unicodedata.normalize("NFC", os.path.normpath(name)) if name else ""


def _unique(name: str, seen: Counter[str]) -> str:
    """Return the name, with a number from its second occurrence on."""
    seen[name] += 1
    return f"{name}#{seen[name]}" if seen[name] > 1 else name


def _description(folder: Path) -> str:
    return f"Images of the folder '{shown(folder.resolve(), folder.resolve().parent)}'."
