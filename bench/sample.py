r"""Measure the time of an image with guidance and a ControlNet: medjax against torch.

They take turns, each with 20 steps of DDIM, the same weights and the same noise. By
default they sample one image at a time: 256² in float32 on the CPU, and 512² in
bfloat16 on an accelerator.

    python -m bench.sample                           all of it
    python -m bench.sample --network=tiny --size=64  a minute, to try it out
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench import report
from bench.networks import DTYPES, UNETS, Settings, check_choices
from bench.painters import PAINTERS
from bench.report import Row, Spread
from bench.workers import Turn, take_turn
from medjax.errors import UserError

# Largest difference of the images' means, in [0, 1].
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
PACKAGES = ("jax", "jaxlib", "flax", "diffusers", "torch", "numpy")
ABOUT = """
The time of an image: 20 steps of DDIM with guidance, each with the U-Net and the
ControlNet at twice the batch, then the decoder. Text embeddings, edges and noise are
given. Both competitors have the same weights and inputs. The command checked this with
the mean of their images. They take turns, A B A B …, and each turn is a new process. It
samples once to compile and to fill caches, and then some batches that count.

* **seconds per image**: median (smallest–largest) over all turns.
* **medjax / it**: time of medjax divided by the time of this row. Each turn gives the
  ratio of two medians; this is the median (smallest–largest) of the turns. Below 1,
  medjax is faster.
* **first**: the first batch of the first turn, including compilation.
* **torch** is `StableDiffusionControlNetPipeline`; on an accelerator it is compiled,
  with channels last.
"""


def measure(settings: Settings, images: int, repeats: int) -> list[Row]:
    """Return one row per competitor.

    Args:
        settings: Network, image size, batch and dtype.
        images: Number of timed batches per turn.
        repeats: Number of turns of each competitor.

    Raises:
        UserError: If the means of the images differ by more than `TOLERANCE`.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in PAINTERS}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(repeats):
            for name, painter in PAINTERS.items():
                turn = take_turn(name, painter.make, settings, images, cache, warm_up=1)
                turns[name].append(turn)
                print(settings, name, turn, file=sys.stderr, flush=True)
    check_means({name: turns[name][0].losses[0] for name in turns}, settings)
    return [_row(name, turns, settings) for name in turns]


def check_means(means: Mapping[str, float], settings: Settings) -> None:
    """Raise UserError unless the images' means, by competitor, agree."""
    apart = max(means.values()) - min(means.values())
    # In this form, NaN fails.
    if not apart <= TOLERANCE[settings.dtype]:
        raise UserError(f"the images differ: their means are {dict(means)}")


def _row(name: str, turns: dict[str, list[Turn]], settings: Settings) -> Row:
    own = turns[name]
    each = tuple(s / settings.batch for turn in own for s in turn.seconds)
    medians = {
        who: Spread(tuple(statistics.median(turn.seconds) for turn in turns[who]))
        for who in turns
    }
    return {
        "dtype": settings.dtype,
        "batch": settings.batch,
        "painter": name,
        "seconds per image": Spread(each),
        "medjax / it": medians["medjax"] / medians[name],
        "first, s": own[0].first,
        "peak memory, GiB": max(turn.peak for turn in own),
        "mean of the images": own[0].losses[0],
    }


def _flags() -> argparse.Namespace:
    flags = report.parser(__doc__)
    flags.add_argument("--network", choices=sorted(UNETS), default="sd15")
    flags.add_argument("--size", type=int, help="pixels (256; on an accelerator 512)")
    flags.add_argument("--batch", type=int, default=1, help="images per batch")
    flags.add_argument(
        "--dtype", help="dtypes, by commas (float32; on an accelerator bfloat16)"
    )
    flags.add_argument("--images", type=int, default=1, help="batches per turn")
    flags.add_argument("--repeats", type=int, default=3, help="turns (%(default)s)")
    return flags.parse_args()


def main() -> Path:
    """Measure as the flags say, and return the page that it writes."""
    flags = _flags()
    on = report.machine()
    for name, painter in PAINTERS.items():
        report.need(painter.packages, name)
    size = flags.size or (512 if on.accelerated else 256)
    report.check_counts(flags, "batch", "images", "repeats")
    dtypes = (flags.dtype or DTYPES[on.accelerated]).split(",")
    check_choices(flags.network, size, dtypes)
    rows = [
        row
        for dtype in dtypes
        for row in measure(
            Settings(flags.network, size, flags.batch, dtype),
            flags.images,
            flags.repeats,
        )
    ]
    return report.write_results(
        "sample" if flags.network == "sd15" else f"sample-{flags.network}",
        "An image with guidance and a ControlNet",
        ABOUT,
        {f"{flags.network}, {size}²: {flags.repeats} turns of {flags.images}": rows},
        on,
        PACKAGES,
        flags.out,
    )


if __name__ == "__main__":
    report.run(main)
