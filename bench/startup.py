r"""Measure the time until the first training step ends: imports, then the step.

Each import and each first step runs in a new process. The first step runs twice: with
an empty compilation cache of jax, and with the cache that the first run filled.

    python -m bench.startup                        imports, and a tiny network
    python -m bench.startup --network=sd15         the real size: ten minutes
"""

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench import report
from bench.competitors import make_medjax
from bench.networks import UNETS, Settings
from bench.report import Row, Spread
from bench.workers import Worker

# Imports of a command before it can print anything, imports of training, and jax.
MODULES = ("jax", "medjax.train", "medjax.prepare", "medjax.training.loop")
DEAREST = "medjax.training.loop"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "numpy")
SIZES = {"tiny": 64, "sd15": 256}
ABOUT = """
* **seconds**: median (smallest–largest) of `python -c "import …"`, in turns, including
  the start of Python. `medjax.train` is enough for `--help` and for mistakes in flags.
  `medjax.training.loop` is everything that training imports; jax is the largest part.
* **packages**: time that this import spends in the modules of each package, without the
  modules that these import.
* **first step**: time from the start of a process to the end of the first step, in
  parts. The compilation cache is *cold*, or *warm* from an earlier process
  (`JAX_COMPILATION_CACHE_DIR`). Random weights replace the loading of weights.
"""


def import_seconds(module: str) -> float:
    """Return the seconds of a process that imports a module and exits."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def package_seconds(module: str) -> dict[str, float]:
    """Return the seconds of each package's own modules in an import, longest first."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    microseconds: Counter[str] = Counter()
    for own, name in re.findall(r"import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)", said):
        microseconds[name.partition(".")[0]] += int(own)
    return {name: count / 1e6 for name, count in microseconds.most_common()}


def measure_imports(repeats: int) -> list[Row]:
    """Return one row per module. The modules take turns."""
    import_seconds(DEAREST)  # Once before, so that the files are in memory for all.
    turns = [[import_seconds(module) for module in MODULES] for _ in range(repeats)]
    columns = zip(*turns, strict=True)
    return [
        {"import": module, "seconds": Spread(tuple(column))}
        for module, column in zip(MODULES, columns, strict=True)
    ]


def measure_packages(count: int) -> list[Row]:
    """Return one row for each of the `count` packages that take longest."""
    return [
        {"package": name, "seconds": seconds}
        for name, seconds in list(package_seconds(DEAREST).items())[:count]
    ]


def measure_first_step(settings: Settings) -> list[Row]:
    """Return a row for a cold compilation cache, and one for a warm one."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        environment = {"JAX_COMPILATION_CACHE_DIR": cache}
        for state in ("cold", "warm"):
            print(f"first step, {state} …", file=sys.stderr, flush=True)
            with Worker("medjax", make_medjax, settings, environment) as worker:
                first, _ = worker.step()
                second, _ = worker.step()
                rows.append(
                    {
                        "compilation cache": state,
                        "imports and weights, s": worker.start_seconds,
                        "first step, s": first,
                        "second step, s": second,
                        "until the first update, s": worker.start_seconds + first,
                    }
                )
    return rows


def main() -> Path:
    """Measure as the flags say, and return the page that it writes."""
    flags = report.parser(__doc__)
    flags.add_argument("--network", choices=sorted(UNETS), default="tiny")
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    flags.add_argument("--repeats", type=int, default=5, help="imports (%(default)s)")
    given = flags.parse_args()
    on = report.machine()
    size = SIZES[given.network]
    settings = Settings(given.network, size, batch=1, dtype=given.dtype)
    tables = {
        "Imports": measure_imports(given.repeats),
        f"Packages of {DEAREST}": measure_packages(10),
        f"First step: {given.network}, {size}², batch 1, {given.dtype}": (
            measure_first_step(settings)
        ),
    }
    name = "startup" if given.network == "tiny" else f"startup-{given.network}"
    return report.write_results(
        name, "Start-up", ABOUT, tables, on, PACKAGES, given.out
    )


if __name__ == "__main__":
    report.run(main)
