"""Read tables of captions and labels row by row. Only damaged rows are lost.

A fault of the whole table (a missing column, no usable row) is an error.
"""

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from medjax import texts
from medjax.data.datasets.survey import Skipped, printable
from medjax.errors import UserError, nearest

Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        path: Path of the file.
        rows: Good rows, with their line numbers. Each has every wanted column.
        damaged: Other rows, named by their line.
    """

    path: Path
    rows: list[tuple[int, Row]]
    damaged: list[Skipped]

    @property
    def count(self) -> int:
        """Number of all rows."""
        return len(self.rows) + len(self.damaged)

    def leave_out(self, line: int, name: str, reason: str) -> Skipped:
        """Return the row at `line`, whose image is called `name`, as left out."""
        where = f"{self.path.name}, line {line}"
        return Skipped("row", f"{where}: {printable(name)}" if name else where, reason)


def read_csv(path: Path, wanted: Sequence[str]) -> Table:
    """Read a CSV file with a header line, in any encoding that `texts` reads.

    Cells in columns without a name are ignored if they are empty.

    Args:
        path: Path of the file.
        wanted: Required columns.

    Raises:
        UserError: If the file cannot be read, lacks a column or has no good row.
    """
    records = _records(list(io.StringIO(texts.read_text(path, keep_damage=True))))
    _, header = next(records, (0, []))
    if isinstance(header, str):
        raise UserError(f"{path}: its first line {header}")
    _require_columns(path, header, wanted)
    rows = (
        (line, _named(header, cells) if isinstance(cells, list) else cells)
        for line, cells in records
        if cells
    )
    return _table(path, rows, wanted)


def read_jsonl(path: Path, wanted: Sequence[str]) -> Table:
    """Read a file with one JSON object per line. A null counts as an empty text.

    Arguments and errors are the same as for `read_csv`.
    """
    lines = enumerate(texts.lines(texts.read_text(path, keep_damage=True)), 1)
    rows = [(number, _object(line, wanted)) for number, line in lines if line.strip()]
    named = {column for _, row in rows if isinstance(row, dict) for column in row}
    if named:
        _require_columns(path, sorted(named), wanted)
    return _table(path, rows, wanted)


def _records(lines: list[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Yield each record's first line number with its cells, or with the line's fault.

    A line can be faulty, for example by an unclosed quote. Then reading starts again at
    the next line, so that no further row is lost.
    """
    start = 0
    while start < len(lines):
        reader = csv.reader(itertools.islice(lines, start, None), strict=True)
        first = start
        try:
            for cells in reader:
                yield first + 1, cells
                first = start + reader.line_num
        except csv.Error as error:
            yield first + 1, f"is not CSV: {error}"
            first += 1
        start = first


def _named(header: list[str], cells: list[str]) -> Row | str:
    """Return the cells by column, or the reason why they cannot be assigned."""
    if any(cells[len(header) :]):
        return (
            f"has {len(cells)} cells, but the header has {len(header)}; put texts with "
            "commas in double quotes"
        )
    return dict(zip(header, cells, strict=False))


def _object(line: str, wanted: Sequence[str]) -> Row | str:
    """Return the object in a line, with its values as text, or the line's fault."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    if not isinstance(row, dict):
        return f"has type {type(row).__name__}, expected an object"
    values = {key: texts.as_text(value) for key, value in row.items()}
    for column in wanted:
        if values.get(column, "") is None:
            kind = type(row[column]).__name__
            return f"has a {kind} for '{column}', expected a text"
    # Values of other columns may have any type.
    return {key: value for key, value in values.items() if value is not None}


def _table(
    path: Path, rows: Iterable[tuple[int, Row | str]], wanted: Sequence[str]
) -> Table:
    """Separate the good rows from the damaged ones."""
    table = Table(path, [], [])
    for line, row in rows:
        fault = row if isinstance(row, str) else _fault(row, wanted)
        if fault or isinstance(row, str):
            table.damaged.append(table.leave_out(line, "", fault))
        else:
            table.rows.append((line, row))
    if not table.count:
        raise UserError(f"{path}: has no rows")
    if not table.rows:
        first = table.damaged[0]
        raise UserError(
            f"{path}: none of its {table.count} rows can be used; first: {first.name}: "
            f"{first.reason}"
        )
    return table


def _fault(row: Row, wanted: Sequence[str]) -> str:
    """Return the reason why a row cannot be used, or "" if it can."""
    if absent := [column for column in wanted if column not in row]:
        return f"has no value for '{absent[0]}'"
    content = "".join(row.values())
    if "\0" in content:
        return "holds a NUL character"
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8"
    return ""


def _require_columns(path: Path, has: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in has:
            raise UserError(
                f"{path}: has no column '{column}', only {', '.join(has) or 'none'}"
                f"{nearest(column, has)}"
            )
        if has.count(column) > 1:
            raise UserError(f"{path}: has the column '{column}' twice")
