"""What a source folder holds, before any image is read: the input of the builder."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from medjax.errors import UserError, nearest

Row = dict[str, str]


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
        attributes: Whatever else is known: texts, and whole numbers.
    """

    id: str
    image: Path
    group: str
    text: str = ""
    labels: tuple[str, ...] = ()
    conditioning_image: Path | None = None
    attributes: Mapping[str, str | int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file or a row that is left out, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """A data set as found: what to store, what to leave out, and what to call it.

    Attributes:
        name: Name of the data set, as its metadata will say.
        entries: The images to store; all have the same attributes.
        skipped: What is left out so far.
        counts: Numbers for the report: files and rows found.
        group_name: What a group is: "patient_id", say.
        label_names: All labels there can be; empty where the source has none.
        description: A sentence or two.
        licence: Terms of use.
        citation: BibTeX.
        homepage: Where the data come from.
    """

    name: str
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    counts: Mapping[str, int]
    group_name: str = "group"
    label_names: tuple[str, ...] = ()
    description: str = ""
    licence: str = ""
    citation: str = ""
    homepage: str = ""


def find_images(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return all image files under a folder, sorted; hidden ones are left out.

    Raises:
        UserError: If the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise UserError(f"--source={folder}: no such folder")
    wanted = frozenset(suffixes)
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in wanted
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise UserError(
            f"--source={folder}: no image found; expected files that end in "
            f"{', '.join(sorted(wanted))}, in any subfolder"
        )
    return found


def read_csv(path: Path) -> list[Row]:
    """Read a CSV file with a header line."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        # A short row's missing cells count as empty.
        return [_texts(row) for row in csv.DictReader(file, restval="")]


def read_jsonl(path: Path) -> list[Row]:
    """Read one JSON object a line.

    Raises:
        UserError: If a line is none; it says which.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected an object, got {line!r}")
        rows.append(_texts(row))
    return rows


def _texts(row: Mapping[str | None, object]) -> Row:
    # DictReader keeps surplus cells under None; a JSON null is an absent value.
    return {
        key: "" if value is None else str(value)
        for key, value in row.items()
        if key is not None
    }


def require_columns(rows: list[Row], path: Path, wanted: Iterable[str]) -> None:
    """Check that every row of a table has the columns.

    Raises:
        UserError: If the table is empty or a column is missing.
    """
    if not rows:
        raise UserError(f"{path}: holds no rows")
    for number, row in enumerate(rows, 1):
        for column in wanted:
            if column not in row:
                raise UserError(
                    f"{path}: row {number} has no column '{column}'"
                    f"{nearest(column, row)} It has: {', '.join(row)}"
                )
