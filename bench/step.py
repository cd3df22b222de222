r"""Measure one training step of a ControlNet: medjax against its peers.

Against diffusers' Flax modules ("flax") and torch diffusers ("torch"), each with the
same weights and inputs, in a process of its own, step by step in turns. On the CPU that
is 256² in batches of 1, float32 and bfloat16; on an accelerator 512² in bfloat16, in
batches up to what fits.

    python -m bench.step                                  all of it
    python -m bench.step --network=tiny --size=64         a minute, to try it out
    python -m bench.step --competitors=medjax,flax --dtype=bfloat16 --repeats=10
    python -m bench.step --size=512 --batch=1,2,4

Each pair needs 19 GB of memory in float32. A jax competitor compiles for minutes first.
"""

import argparse
import contextlib
import itertools
import sys
from collections.abc import Mapping, Sequence

from bench import report
from bench.competitors import COMPETITORS
from bench.networks import DOWNSAMPLING, UNETS, Settings
from bench.report import Row, Spread
from bench.workers import OutOfMemory, Worker
from medjax.errors import UserError, nearest

PAIRS = "medjax,flax medjax,torch"
DTYPES = ("float32", "bfloat16")
# On an accelerator, up to what fits.
BATCHES = "1,2,4,8,16,32"
# How far the first losses may lie apart, relative to the smallest. In float32 it is
# the approximation of GELU in diffusers' Flax modules; TF32 is less exact.
TOLERANCE = {("float32", False): 1e-3, ("float32", True): 1e-2}
COARSE_TOLERANCE = 3e-2
# The first step compiles, the second still fills caches.
WARM_UP = 2
PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffusers", "torch", "numpy")
ABOUT = """
The time of one update of a ControlNet of this shape: forward, backward, clipping and
AdamW. The U-Net is frozen; latents, text embeddings and the conditioning image are
given. All competitors of a group have the same weights and inputs, which was checked by
their losses, and take turns step by step, so that whatever else the machine does hits
all alike.

* **seconds per step**: median (least–largest) of the repeats, after two for warming up.
* **medjax / it**: median over the turns of our time divided by this competitor's.
  Below 1 means that medjax is faster.
* **first step**: with its compilation.
* **peak memory**: of the whole process, compilation included; on an accelerator that
  of the device.
* **flax** is `FlaxUNet2DConditionModel` and `FlaxControlNetModel` of diffusers, jitted;
  **torch** is `UNet2DConditionModel` and `ControlNetModel` with fused AdamW, on an
  accelerator compiled and with channels last.
"""


def measure(
    names: Sequence[str], settings: Settings, repeats: int, accelerated: bool
) -> list[Row]:
    """Return one row a competitor, of one group that takes turns.

    Raises:
        UserError: If the losses differ, so that they do not compute the same.
        OutOfMemory: If one of them does not fit.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, settings)) for name in names]
        first = [worker.step() for worker in workers]
        check_losses(
            {name: loss for name, (_, loss) in zip(names, first, strict=True)},
            settings,
            accelerated,
        )
        for worker in workers * (WARM_UP - 1):
            worker.step()
        turns = [[worker.step() for worker in workers] for _ in range(repeats)]
        peaks = [worker.peak_gib() for worker in workers]
    times = [[seconds for seconds, _ in column] for column in zip(*turns, strict=True)]
    spreads = [Spread(tuple(column)) for column in times]
    return [
        {
            "dtype": settings.dtype,
            "batch": settings.batch,
            "competitor": name,
            "seconds per step": spreads[i],
            "steps/s": 1 / spreads[i].median,
            "images/s": settings.batch / spreads[i].median,
            "medjax / it": spreads[0] / spreads[i] if names[0] == "medjax" else "",
            "first step, s": first[i][0],
            "peak memory, GiB": peaks[i],
            "first loss": f"{first[i][1]:.5f}",
            "last loss": f"{turns[-1][i][1]:.5f}",
        }
        for i, name in enumerate(names)
    ]


def check_losses(
    losses: Mapping[str, float], settings: Settings, accelerated: bool
) -> None:
    """Raise UserError unless the losses, by competitor, agree."""
    limit = TOLERANCE.get((settings.dtype, accelerated), COARSE_TOLERANCE)
    least = min(losses.values())
    # Written so that NaN fails.
    if not all(abs(loss - least) <= limit * least for loss in losses.values()):
        raise UserError(
            f"the losses differ by more than {limit:g}: {dict(losses)}; competitors "
            "that do not compute the same cannot be compared"
        )


def compare(
    groups: Sequence[Sequence[str]],
    choices: Sequence[Settings],
    repeats: int,
    accelerated: bool,
) -> list[Row]:
    """Measure every group at every setting; what does not fit has a row that says so.

    Args:
        groups: Names of competitors that take turns.
        choices: What to train; of one dtype from the smallest batch up.
        repeats: Steps of each that count.
        accelerated: Whether there is an accelerator.
    """
    rows: list[Row] = []
    full: set[tuple[Sequence[str], str]] = set()
    for settings, group in itertools.product(choices, groups):
        if (group, settings.dtype) in full:
            continue
        what = f"{' and '.join(group)}, {settings.dtype}, batch {settings.batch}"
        print(f"{what} …", file=sys.stderr, flush=True)
        try:
            measured = measure(group, settings, repeats, accelerated)
        except OutOfMemory as error:
            print(f"out of memory: {error}", file=sys.stderr)
            full.add((group, settings.dtype))
            continue
        for row in measured:
            print(*(f"{k}: {row[k]}" for k in list(row)[2:4]), file=sys.stderr)
        rows += measured
    if not rows:
        raise UserError("nothing fits; take a smaller --size or --batch")
    return rows


def _flags() -> argparse.Namespace:
    flags = report.parser(__doc__)
    flags.add_argument("--network", choices=sorted(UNETS), default="sd15")
    flags.add_argument(
        "--size",
        type=int,
        help="height and width of the images, in pixels (256; on an accelerator 512)",
    )
    flags.add_argument(
        "--batch",
        help=f"examples of an update, by commas (1; on an accelerator {BATCHES})",
    )
    flags.add_argument(
        "--dtype",
        help="of activations and frozen weights, by commas "
        f"({','.join(DTYPES)}; on an accelerator {DTYPES[-1]})",
    )
    flags.add_argument(
        "--competitors",
        default=PAIRS,
        help="who takes turns, by commas; several groups by blanks (%(default)s)",
    )
    flags.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    return flags.parse_args()


def _groups(text: str) -> list[tuple[str, ...]]:
    groups = [tuple(group.split(",")) for group in text.split()]
    for name in itertools.chain(*groups):
        if name not in COMPETITORS:
            raise UserError(
                f"--competitors: there is no '{name}'{nearest(name, COMPETITORS)} "
                f"They are {', '.join(COMPETITORS)}"
            )
        report.need(COMPETITORS[name][1], f"the competitor {name}")
    return groups


def _choices(flags: argparse.Namespace, accelerated: bool) -> list[Settings]:
    size = flags.size or (512 if accelerated else 256)
    batch = flags.batch or (BATCHES if accelerated else "1")
    dtypes = (flags.dtype or ",".join(DTYPES[accelerated:])).split(",")
    if unknown := set(dtypes) - set(DTYPES):
        raise UserError(f"--dtype={unknown.pop()}: expected {' or '.join(DTYPES)}")
    step = DOWNSAMPLING * 2 ** (len(UNETS[flags.network]["block_out_channels"]) - 1)
    if size < step or size % step:
        raise UserError(f"--size={size}: expected a multiple of {step}")
    if not all(part.isdecimal() and int(part) for part in batch.split(",")):
        raise UserError(f"--batch={batch}: expected numbers from 1, by commas")
    if flags.repeats < 1:
        raise UserError(f"--repeats={flags.repeats}: expected at least 1")
    batches = sorted(int(part) for part in batch.split(","))
    return [
        Settings(flags.network, size, batch, dtype)
        for dtype, batch in itertools.product(dtypes, batches)
    ]


def main() -> None:
    """Measure as the flags say, and write the results."""
    flags = _flags()
    on = report.machine()
    groups, choices = _groups(flags.competitors), _choices(flags, on.accelerated)
    rows = compare(groups, choices, flags.repeats, on.accelerated)
    caption = f"{flags.network}, {choices[0].size}², {flags.repeats} repeats"
    page = report.write_results(
        "step" if flags.network == "sd15" else f"step-{flags.network}",
        "One training step of a ControlNet",
        ABOUT,
        {caption: rows},
        on,
        PACKAGES,
        flags.out,
    )
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    report.run(main)
