r"""Measure the input pipeline in images per second, against a torch DataLoader.

All convert the same grayscale files of 1024², once as PNG and once as JPEG, to batches
of 512²: they decode, resize, find edges, tokenise and stack. medjax reads the output of
`medjax.prepare`, without and with a cache of resized images. The DataLoader reads the
folder of files. They take turns.

    python -m bench.input                          two worker processes each
    python -m bench.input --workers=8 --images=512 --batch=16
    python -m bench.input --source_size=64 --size=32 --images=16   seconds, to try it
"""

import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench import report
from bench.input_stages import stages
from bench.pipelines import READY, Batch, Pipelines, Stream, make_pipelines
from bench.report import Row, Spread
from medjax.errors import UserError

PACKAGES = ("grain", "array-record", "torch", "pillow", "opencv-python-headless")
ABOUT = """
Images per second of the input pipeline, without a network that uses them. All pipelines
do the same work on the same files. Pillow decodes, OpenCV resizes by area and finds
edges, and one CLIP tokenizer returns 77 ids. The command checked that the batches are
equal.

* **medjax, cached**: medjax with `config.data.cache`, whose images were resized before.
  This is the rate of all epochs. Without a cache, all epochs have the rate of
  **medjax**.
* **images/s**: median (smallest–largest) of the turns. A turn starts the pipeline,
  skips its first batches, and times the others.
* **first batch**: seconds until the workers run and the first batch arrives. A run
  waits for it once.
* **it / torch**: rate of this row divided by the rate of the DataLoader.
* **waited**: share of time spent waiting for batches. Each batch is followed by the
  stated seconds of matrix products on all cores, which imitate a short step on the CPU.
  The goal is under 1%.
* **read**: share of that time spent reading an available batch once, as its copy to a
  device does.

Training waits for data only if this rate is below the images per second of its step
(see `step-*.md`). More workers raise the rate until all cores are busy.

The last table has the milliseconds of one core for each stage and image. Other programs
change them less than the rates above. medjax decodes with Pillow, because OpenCV
returns a gray rectangle for the missing end of a truncated file. It decodes JPEG at its
full scale, because half the scale gives other pixels and saves less than a cache. PNG
has no smaller scales. The slowest stage of cached images is their copy: an image with
its edges has 6 MB as float32, and grain copies it once into new memory that it shares
with the main process.
"""


def check_equal(pipelines: Pipelines) -> None:
    """Raise UserError unless the first two batches are equal, in stored order."""
    for make in (pipelines.medjax, pipelines.cached):
        with (
            contextlib.closing(make(shuffle=False)) as ours,
            contextlib.closing(pipelines.torch(shuffle=False)) as theirs,
        ):
            for mine, other in itertools.islice(zip(ours, theirs, strict=False), 2):
                for name, array in mine.items():
                    if not np.array_equal(array, np.asarray(other[name])):
                        raise UserError(f"the pipelines differ in '{name}'")


def one_turn(
    make: Callable[[bool], Stream], count: int, skip: int
) -> tuple[float, float]:
    """Return the seconds to the first batch, and those of `count` batches after `skip`.

    Some batches are ready before the clock starts. So `count` should be several times
    their number.
    """
    start = time.perf_counter()
    with contextlib.closing(make(True)) as stream:
        next(stream)
        first = time.perf_counter() - start
        _draw(stream, skip)
        start = time.perf_counter()
        _draw(stream, count)
        return first, time.perf_counter() - start


def waited(
    make: Callable[[bool], Stream], count: int, skip: int, seconds: float
) -> tuple[float, float]:
    """Return percentages of time: waiting for `count` batches, and reading them.

    Args:
        make: Starts the pipeline.
        count: Number of timed batches; several times the number that workers prefetch.
        skip: Number of batches before these, which are not timed.
        seconds: Seconds of computation before each batch.
    """
    matrix = np.ones((512, 512), np.float32)
    waiting = reading = 0.0
    with contextlib.closing(make(True)) as stream:
        _draw(stream, skip)
        begin = time.perf_counter()
        for _ in range(count):
            start = time.perf_counter()
            while time.perf_counter() < start + seconds:
                matrix @ matrix
            start = time.perf_counter()
            batch = next(stream)
            here = time.perf_counter()
            _read(batch)
            waiting += here - start
            reading += time.perf_counter() - here
        percent = 100 / (time.perf_counter() - begin)
        return waiting * percent, reading * percent


def _draw(stream: Iterator[Batch], count: int) -> None:
    for batch in itertools.islice(stream, count):
        _read(batch)


def _read(batch: Batch) -> None:
    np.asarray(batch["images"]).max()


def measure(pipelines: Pipelines, repeats: int, seconds: float) -> list[Row]:
    """Return one row per pipeline. `seconds` is the duration of a step."""
    skip = READY * max(pipelines.workers, 1)
    count = 8 * skip
    makers = {
        "medjax": pipelines.medjax,
        "medjax, cached": pipelines.cached,
        "torch": pipelines.torch,
    }
    turns: list[dict[str, tuple[float, float]]] = []
    for i in range(repeats):
        print(f"turn {i + 1} of {repeats} …", file=sys.stderr, flush=True)
        turns.append({name: one_turn(m, count, skip) for name, m in makers.items()})
    shares: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    for _ in range(repeats):
        for name, maker in makers.items():
            shares[name].append(waited(maker, 4 * skip, skip, seconds))
    drawn = count * pipelines.batch
    columns = {name: [turn[name] for turn in turns] for name in makers}
    rates = {
        name: Spread(tuple(drawn / seconds for _, seconds in column))
        for name, column in columns.items()
    }
    return [
        {
            "pipeline": name,
            "images/s": rates[name],
            "images/s per worker": rates[name].median / max(pipelines.workers, 1),
            "it / torch": rates[name] / rates["torch"],
            f"waited, % (step of {seconds:g} s)": Spread(
                tuple(w for w, _ in shares[name])
            ),
            "read, %": Spread(tuple(r for _, r in shares[name])),
            "first batch, s": Spread(tuple(first for first, _ in columns[name])),
        }
        for name in makers
    ]


def main() -> Path:
    """Measure as the flags say, and return the page that it writes."""
    flags = report.parser(__doc__)
    for name, default, text in (
        ("images", 64, "files in the data set"),
        ("source_size", 1024, "height and width of the files, in pixels"),
        ("size", 512, "height and width of the batches, in pixels"),
        ("batch", 4, "images per batch"),
        ("workers", 2, "worker processes of each pipeline; 0 for none"),
        ("repeats", 5, "turns of each"),
    ):
        help_ = f"{text} (%(default)s)"
        flags.add_argument(f"--{name}", type=int, default=default, help=help_)
    flags.add_argument(
        "--step_seconds", type=float, default=0.5, help="per step (%(default)s)"
    )
    given = flags.parse_args()
    report.need(("torch",), "the DataLoader")
    if given.images < given.batch:
        raise UserError(f"--images={given.images}: expected at least --batch")
    on = report.machine()
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        made = {
            name: make_pipelines(
                Path(folder, kind),
                given.images,
                given.source_size,
                given.size,
                given.batch,
                given.workers,
                kind,
            )
            for name, kind in (("PNG", "png"), ("JPEG", "jpg"))
        }
        for name, pipelines in made.items():
            check_equal(pipelines)
            caption = (
                f"{given.source_size}² {name} to {given.size}², batches of "
                f"{given.batch}, {given.workers} workers"
            )
            tables[caption] = measure(pipelines, given.repeats, given.step_seconds)
        tables["Stages, in ms of one core per image"] = stages(made)
    return report.write_results(
        "input", "The input pipeline", ABOUT, tables, on, PACKAGES, given.out
    )


if __name__ == "__main__":
    report.run(main)
