"""Write a run's metrics to ``metrics.csv``, and pass them to its trackers.

``metrics.csv`` has a row for each step with a report. A new metric adds a column. The
file is then written anew under another name and renamed, so that a reader never sees
half of it. A run that resumes at step s drops the rows after s and the rows that a
crash cut short. So the file reads like that of an uninterrupted run.
"""

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import UInt8

from medjax import storage
from medjax.training.trackers import Trackers

logger = logging.getLogger(__name__)

# Columns that always exist, also in a very short run, because scripts read them.
COLUMNS = ("step", "train/loss", "val/loss", "images_per_second")

Row = dict[str, str]


class MetricsWriter:
    """Writes the metrics of one run. A context manager, which closes the file."""

    def __init__(
        self,
        workdir: str | Path,
        restored_step: int | None = None,
        enabled: bool = True,
        trackers: Trackers | None = None,
    ) -> None:
        """Open ``metrics.csv`` in the workdir.

        Args:
            workdir: Folder of the run, created if it is missing.
            restored_step: Step of the restored checkpoint. Later rows are dropped.
                None starts new files.
            enabled: Whether to write. False on all hosts except the first.
            trackers: The trackers to pass metrics and images to; None for none.
        """
        self._enabled, self._trackers = enabled, trackers
        self._rows: list[Row] = []
        if not enabled:
            return
        self._path = Path(workdir) / "metrics.csv"
        self._columns: list[str] = list(COLUMNS)
        if restored_step is not None and self._path.exists():
            self._columns, self._rows = _read(self._path, restored_step)
        self._rewrite()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one row, and pass the scalars to the trackers.

        Args:
            step: Steps done.
            scalars: Numbers by name, e.g. ``train/loss``. A later call with the same
                step adds to its row.
        """
        if not self._enabled:
            return
        values = {name: float(value) for name, value in scalars.items()}
        self._append({"step": str(step)} | {n: repr(v) for n, v in values.items()})
        if self._trackers is not None:
            self._trackers.log(step, values)

    def history(self, name: str) -> dict[int, float]:
        """Return all values of a scalar by step, also those before a resumption."""
        return {int(r["step"]): float(r[name]) for r in self._rows if name in r}

    def write_image(
        self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]
    ) -> None:
        """Pass an image to the trackers.

        Args:
            step: Steps done.
            name: Name of the image, e.g. ``samples``.
            image: RGB, 0 to 255.
        """
        if self._trackers is not None:
            self._trackers.log_image(step, name, image)

    def close(self) -> None:
        """Flush and close the file."""
        if self._enabled:
            self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, row: Row) -> None:
        earlier = bool(self._rows) and self._rows[-1]["step"] == row["step"]
        if earlier:
            self._rows[-1] |= row
        else:
            self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new or earlier:
            self._columns += new
            self._file.close()
            self._rewrite()
        else:
            csv.DictWriter(self._file, self._columns).writerow(row)
            self._file.flush()

    def _rewrite(self) -> None:
        """Replace the file by a new one with all rows, and open that to append."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        storage.write_text(self._path, text.getvalue())
        end = storage.appending(self._path)
        self._file = io.TextIOWrapper(end, encoding="utf-8", newline="")


def _read(path: Path, last_step: int) -> tuple[list[str], list[Row]]:
    """Return the columns, and the complete rows up to `last_step`."""
    text = path.read_text(encoding="utf-8", errors="replace")
    # A last line without a line end was cut short, even if it looks like a row.
    whole, _, tail = text.rpartition("\n")
    header, *lines = list(csv.reader(whole.splitlines())) or [list(COLUMNS)]
    rows: list[Row] = []
    damaged = int(bool(tail))
    for line in lines:
        row = dict(zip(header, line, strict=False))
        if len(line) != len(header) or not _is_whole(row):
            damaged += 1
        elif int(row["step"]) <= last_step:
            rows.append({name: value for name, value in row.items() if value})
    if damaged:
        logger.warning("%s: dropped %d damaged rows", path, damaged)
    return header + [name for name in COLUMNS if name not in header], rows


def _is_whole(row: Row) -> bool:
    """Tell whether every value is a number, and the step an integer."""
    try:
        int(row["step"])
        for value in row.values():
            float(value or "nan")
    except (KeyError, ValueError):
        return False
    return True
