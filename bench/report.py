"""Describe the machine, compute statistics, and write the results of a benchmark.

A result is a Markdown page to read and a JSON file to compute with. Both have the same
content: tables, the machine of the measurement, and the versions of the packages.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax import storage
from medjax.chips import silence_libtpu
from medjax.errors import UserError

RESULTS = Path(__file__).parent / "results"
GIB = 2**30
# With more processes at the start, or fewer repeats, the page says not to rely on it.
MOST_LOAD = 0.5
LEAST_REPEATS = 3
# It runs in another process, because importing jax reserves the memory of a GPU.
_ASK_JAX = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep=':')"
_USER_ERROR_EXIT_CODE = 2

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing.

    Attributes:
        values: Measurements in their order, at least one.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, which one slow repeat does not change."""
        return statistics.median(self.values)

    def __truediv__(self, other: "Spread") -> "Spread":
        """Return the ratio of each turn, so that noise that affects both cancels."""
        pairs = zip(self.values, other.values, strict=True)
        return Spread(tuple(a / b for a, b in pairs))

    def __str__(self) -> str:
        low, high = number(min(self.values)), number(max(self.values))
        return f"{number(self.median)} ({low}–{high})"

    def as_json(self) -> dict[str, Any]:
        """Return the statistics and their values."""
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


@dataclasses.dataclass(frozen=True)
class Machine:
    """Machine of the benchmark.

    Attributes:
        device: Device of jax, as in file names: ``cpu``, or the kind of accelerator.
        accelerated: Whether the device is an accelerator, not a CPU.
        described: Properties of the machine, by name.
        load: Average number of runnable processes in the minute before.
    """

    device: str
    accelerated: bool
    described: dict[str, str]
    load: float = 0.0


def machine() -> Machine:
    """Describe this machine and its present load, which shows whether it was idle."""
    said = subprocess.run(
        [sys.executable, "-c", _ASK_JAX], capture_output=True, text=True, check=True
    )
    kind, device = said.stdout.splitlines()[-1].split(":", 1)
    accelerated = kind != "cpu"
    load = os.getloadavg()[0]
    described = {
        "CPU": _cpu_model(),
        "cores for this process": str(len(os.sched_getaffinity(0))),
        "memory": f"{_memory_bytes() / GIB:.1f} GiB",
        "accelerator": device if accelerated else "none",
        "load at the start": f"{load:.1f} processes in the last minute",
        # No kernel or build: they name the machine, and change no figure.
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.date.today().isoformat(),
    }
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return Machine(name if accelerated else "cpu", accelerated, described, load)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    found = {
        key: match[1]
        for key in ("model name", "cpu family", "model", "cpu MHz")
        if (match := re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE))
    }
    name = found.pop("model name", platform.processor() or platform.machine())
    return ", ".join([name, *(f"{key} {value}" for key, value in found.items())])


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of the installed packages."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def number(value: float) -> str:
    """Return a number with three significant digits."""
    digits = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in digits else digits


def percent(share: float) -> str:
    """Return a fraction as a percentage: 0.0123 as "1.23%"."""
    return f"{number(100 * share)}%"


def write_results(
    name: str,
    title: str,
    about: str,
    tables: Mapping[str, Sequence[Row]],
    on: Machine,
    packages: Sequence[str],
    folder: Path,
) -> Path:
    """Write ``<name>-<device>.md`` and ``.json``; return the page's path.

    Args:
        name: Name of the benchmark.
        title: Title of the page.
        about: Explanation of the measurement and its numbers, in Markdown.
        tables: Rows by the captions of the tables. All rows of a table have the same
            columns. A `Spread` shows its median, smallest and largest value.
        on: Machine of the measurement.
        packages: Packages whose versions to write.
        folder: Folder to write to.
    """
    content = {
        "title": title,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "doubts": _doubts(tables, on.load),
        "tables": tables,
        "machine": on.described,
        "versions": versions(packages),
    }
    page = folder / f"{name}-{on.device}.md"
    text = json.dumps(content, indent=1, default=Spread.as_json, ensure_ascii=False)
    storage.write_text(page.with_suffix(".json"), text + "\n")
    storage.write_text(page, _markdown(content, about))
    return page


def _doubts(tables: Mapping[str, Sequence[Row]], load: float) -> list[str]:
    """Return the reasons not to rely on these numbers; empty if they are reliable."""
    cells = [cell for rows in tables.values() for row in rows for cell in row.values()]
    repeats = [len(cell.values) for cell in cells if isinstance(cell, Spread)]
    fewest = min(repeats, default=LEAST_REPEATS)
    doubts = []
    if fewest < LEAST_REPEATS:
        doubts.append(f"repeats: {fewest}, expected at least {LEAST_REPEATS}")
    if load > MOST_LOAD:
        doubts.append(f"load at the start: {load:.1f}, expected at most {MOST_LOAD}")
    return doubts


def _markdown(content: Mapping[str, Any], about: str) -> str:
    parts = [f"# {content['title']}"]
    if content["doubts"]:
        parts.append(f"**Do not rely on this page.** {'; '.join(content['doubts'])}.")
    parts.append(about.strip())
    for caption, rows in content["tables"].items():
        parts += [f"## {caption}", _table(rows)]
    for caption in ("machine", "versions"):
        rows = [{"": key, "is": value} for key, value in content[caption].items()]
        parts += [f"## {caption.capitalize()}", _table(rows)]
    parts.append(f"Made by `{content['command']}`.")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def need(packages: Sequence[str], what: str) -> None:
    """Raise UserError if a package that `what` requires is not installed."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"{what} requires {name}, which is not installed: pip install -e "
                "'.[flax-pipelines,dev]', or measure without it (see --help)"
            )


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the common flags, and a module's docstring as its help."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (%(default)s)"
    )
    return made


def check_counts(flags: argparse.Namespace, *names: str) -> None:
    """Raise UserError if a flag with one of these names is below 1."""
    for name in names:
        if getattr(flags, name) < 1:
            raise UserError(f"--{name}={getattr(flags, name)}: expected at least 1")


def run(main: Callable[[], Path | list[Path]]) -> None:
    """Run `main` and print its pages. A `UserError` is one line, with exit code 2."""
    silence_libtpu()
    try:
        pages = main()
        for page in [pages] if isinstance(pages, Path) else pages:
            print(page.read_text(encoding="utf-8"))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(_USER_ERROR_EXIT_CODE)
