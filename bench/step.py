r"""Measure one training step of a ControlNet, or of LoRA: medjax against its peers.

The peers are diffusers' Flax modules ("flax") and torch diffusers ("torch"). All take
turns, with the same weights and inputs. By default, images are 256² in batches of 1, in
float32 and bfloat16, on the CPU. On an accelerator they are 512² in bfloat16, in
batches up to the largest that fits.

    python -m bench.step                                  all of it
    python -m bench.step --network=tiny --size=64         minutes, to try it out
    python -m bench.step --competitors=medjax,flax --dtype=bfloat16 --repeats=10
    python -m bench.step --size=512 --batch=1,2,4
    python -m bench.step --trains=lora                    adapters, against torch

In float32 a competitor needs up to 13 GiB. Only one is in memory at a time.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import report
from bench.lora_competitors import CONTESTS, RANK
from bench.networks import DTYPES, UNETS, Settings, check_choices
from bench.report import Row, Spread
from bench.workers import OutOfMemory, Turn, take_turn
from medjax.errors import UserError, nearest

# On an accelerator, up to the largest that fits.
BATCHES = "1,2,4,8,16,32"
# Largest difference of the first losses, relative to the smallest. In float32 it comes
# from the approximation of GELU in diffusers' Flax modules. TF32 is less exact.
TOLERANCE = {("float32", False): 1e-3, ("float32", True): 1e-2}
COARSE_TOLERANCE = 3e-2
PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffusers", "torch", "numpy")
ABOUT = """
The time of one training step of {what} for a U-Net of this shape: forward, backward,
clipping and AdamW. The U-Net is frozen. Latents, text embeddings and conditioning
images are given. All competitors have the same weights and inputs. The command checked
this with their losses. They take turns, A B C A B C …. Each turn is a new process that
takes some steps, because not all competitors fit into memory at once.

* **seconds per step**: median (smallest–largest) over all turns. The first two steps of
  each turn warm up and do not count.
* **medjax / it**: time of medjax divided by the time of this competitor. Each turn
  gives the ratio of two medians; this is the median (smallest–largest) of the turns.
  Below 1, medjax is faster.
* **first step**: seconds of the first step, including compilation.
* **peak memory**: that of the whole process, including compilation; on an accelerator,
  that of the device.
* **loss**: loss before the first step, and before the last step.
"""
# Name of the trained part, and description of the competitors, for the page.
TOLD = {
    "controlnet": (
        "a ControlNet",
        """
* **flax** is `FlaxUNet2DConditionModel` and `FlaxControlNetModel` of diffusers, jitted.
  **torch** is `UNet2DConditionModel` and `ControlNetModel` with fused AdamW; on an
  accelerator it is compiled, with channels last.
""",
    ),
    "lora": (
        "adapters",
        f"""
* **torch** is `UNet2DConditionModel` with fused AdamW and peft's adapters; on an
  accelerator it is compiled, with channels last. All adapters have rank {RANK}, are on
  all projections of attention, and are float32.
""",
    ),
}


def measure(
    names: Sequence[str],
    settings: Settings,
    steps: int,
    repeats: int,
    accelerated: bool,
) -> list[Row]:
    """Return one row per competitor.

    Args:
        names: Names of the competitors, in the order of their turns.
        settings: Network, sizes and trained part.
        steps: Number of timed steps per turn.
        repeats: Number of turns of each competitor.
        accelerated: Whether jax uses an accelerator.

    Raises:
        UserError: If the losses differ, because the competitors then compute different
            things.
        OutOfMemory: If a competitor does not fit into memory.
    """
    makers = CONTESTS[settings.trains]
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(repeats):
            for name in names:
                turns[name].append(
                    take_turn(name, makers[name][0], settings, steps, cache)
                )
                print(name, *turns[name][-1].seconds, file=sys.stderr, flush=True)
            check_losses(
                {name: turns[name][0].losses[0] for name in names},
                settings,
                accelerated,
            )
    return [_row(name, turns, settings) for name in names]


def _row(name: str, turns: Mapping[str, Sequence[Turn]], settings: Settings) -> Row:
    own = turns[name]
    seconds = Spread(tuple(s for turn in own for s in turn.seconds))
    medians = {
        who: Spread(tuple(statistics.median(turn.seconds) for turn in turns[who]))
        for who in turns
    }
    ours = medians.get("medjax")
    return {
        "dtype": settings.dtype,
        "batch": settings.batch,
        "competitor": name,
        "seconds per step": seconds,
        "steps/s": 1 / seconds.median,
        "images/s": settings.batch / seconds.median,
        "medjax / it": ours / medians[name] if ours else "",
        "first step, s": own[0].first,
        "peak memory, GiB": max(turn.peak for turn in own),
        "loss": f"{own[0].losses[0]:.5f}, {own[0].losses[-1]:.5f}",
    }


def check_losses(
    losses: Mapping[str, float], settings: Settings, accelerated: bool
) -> None:
    """Raise UserError unless the losses, by competitor, agree."""
    limit = TOLERANCE.get((settings.dtype, accelerated), COARSE_TOLERANCE)
    least = min(losses.values())
    # In this form, NaN fails.
    if not all(abs(loss - least) <= limit * least for loss in losses.values()):
        raise UserError(
            f"the losses differ by more than {limit:g}: {dict(losses)}; competitors "
            "can be compared only if they compute the same"
        )


def compare(
    names: Sequence[str],
    choices: Sequence[Settings],
    steps: int,
    repeats: int,
    accelerated: bool,
) -> list[Row]:
    """Measure every competitor with every setting. Only those that fit get a row.

    Args:
        names: Names of the competitors. If a batch does not fit, the competitor skips
            all later batches of this dtype.
        choices: Settings to measure; for each dtype from the smallest batch upwards.
        steps: Number of timed steps per turn.
        repeats: Number of turns of each competitor.
        accelerated: Whether jax uses an accelerator.
    """
    rows: list[Row] = []
    full: set[tuple[str, str]] = set()
    for settings in choices:
        fitting = [name for name in names if (name, settings.dtype) not in full]
        while fitting:
            print(f"{settings}: {', '.join(fitting)} …", file=sys.stderr, flush=True)
            try:
                rows += measure(fitting, settings, steps, repeats, accelerated)
                break
            except OutOfMemory as error:
                print(f"out of memory: {error}", file=sys.stderr)
                full.add((error.name, settings.dtype))
                fitting.remove(error.name)
    if not rows:
        raise UserError(
            "no competitor fits into memory; use a smaller --size or --batch"
        )
    return rows


def _flags() -> argparse.Namespace:
    flags = report.parser(__doc__)
    flags.add_argument("--network", choices=sorted(UNETS), default="sd15")
    flags.add_argument(
        "--trains",
        choices=list(CONTESTS),
        default="controlnet",
        help="trained part (%(default)s)",
    )
    flags.add_argument(
        "--size",
        type=int,
        help="height and width of the images, in pixels (256; on an accelerator 512)",
    )
    flags.add_argument(
        "--batch",
        help=f"examples per step, by commas (1; on an accelerator {BATCHES})",
    )
    flags.add_argument(
        "--dtype",
        help="dtypes of activations and frozen weights, by commas "
        f"({','.join(DTYPES)}; on an accelerator {DTYPES[-1]})",
    )
    flags.add_argument(
        "--competitors",
        help="names of competitors, by commas (all)",
    )
    flags.add_argument(
        "--steps", type=int, default=3, help="timed steps per turn (%(default)s)"
    )
    flags.add_argument("--repeats", type=int, default=3, help="turns (%(default)s)")
    return flags.parse_args()


def _competitors(trains: str, text: str | None) -> list[str]:
    known = CONTESTS[trains]
    names = list(known) if text is None else text.split(",")
    for name in names:
        if name not in known:
            raise UserError(
                f"--competitors: unknown name '{name}'; expected some of "
                f"{', '.join(known)}{nearest(name, known)}"
            )
        report.need(known[name][1], f"the competitor {name}")
    return names


def _choices(flags: argparse.Namespace, accelerated: bool) -> list[Settings]:
    size = flags.size or (512 if accelerated else 256)
    batch = flags.batch or (BATCHES if accelerated else "1")
    dtypes = (flags.dtype or ",".join(DTYPES[accelerated:])).split(",")
    check_choices(flags.network, size, dtypes)
    if not all(part.isdecimal() and int(part) for part in batch.split(",")):
        raise UserError(f"--batch={batch}: expected numbers of at least 1, by commas")
    report.check_counts(flags, "steps", "repeats")
    batches = sorted(int(part) for part in batch.split(","))
    return [
        Settings(flags.network, size, batch, dtype, flags.trains)
        for dtype, batch in itertools.product(dtypes, batches)
    ]


def main() -> Path:
    """Measure as the flags say, and return the page that it writes."""
    flags = _flags()
    on = report.machine()
    names = _competitors(flags.trains, flags.competitors)
    choices = _choices(flags, on.accelerated)
    rows = compare(names, choices, flags.steps, flags.repeats, on.accelerated)
    size = f"{flags.network}, {choices[0].size}²"
    caption = f"{size}: {flags.repeats} turns of {flags.steps} steps"
    what, who = TOLD[flags.trains]
    name = "step" if flags.trains == "controlnet" else f"step-{flags.trains}"
    return report.write_results(
        name if flags.network == "sd15" else f"{name}-{flags.network}",
        f"One training step of {what}",
        ABOUT.format(what=what) + who.lstrip(),
        {caption: rows},
        on,
        PACKAGES,
        flags.out,
    )


if __name__ == "__main__":
    report.run(main)
