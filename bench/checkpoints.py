"""Measure the cost of checkpoints: how long training waits, and how long writing takes.

    python -m bench.checkpoints --folder=DISK      a ControlNet's state, 5.8 GB
    python -m bench.checkpoints --network=tiny --step_seconds=0.02

The share of a run requires the seconds of a step. They come from `--step_seconds`, or
from the result of `python -m bench.step` on this device. `--folder` needs space for two
checkpoints.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.networks import UNETS, Settings, draw_controlnet
from bench.report import GIB, Row, Spread
from medjax.errors import UserError

PACKAGES = ("jax", "orbax-checkpoint", "tensorstore", "numpy")
ABOUT = """
A checkpoint contains the trained weights, their average (as in the recommended config)
and the two moments of AdamW, all in float32. Saving is asynchronous: training waits
while the arrays are copied from the device, and continues while they are written.

* **stall**: seconds until `Checkpoints.save` returns.
* **until on disk**: seconds from the call until the checkpoint is complete, including
  checksums, while the machine does nothing else.
* **share of the run**: the stall, over the time from one checkpoint to the next with
  the default `train.checkpoint_every`. **at most** also counts all of the writing, as
  if training waited for it. With free cores, the real share is near the former.
"""


def make_state(settings: Settings) -> Any:
    """Return a `TrainState` of random numbers, because zeros compress to nothing."""
    import jax

    from medjax.meshes import MeshConfig, make_mesh
    from medjax.runs.sections import OptimConfig
    from medjax.training.optimizer import make_optimizer
    from medjax.training.step import init_state

    params = {"controlnet": draw_controlnet(settings)}
    optimizer = make_optimizer(OptimConfig(), 1, params)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = init_state(params, {}, optimizer, mesh, ema=True)

    random = np.random.default_rng(0)

    def fill(leaf: jax.Array) -> jax.Array:
        if leaf.dtype != np.float32:
            return leaf
        drawn = random.standard_normal(leaf.shape, np.float32)
        return jax.device_put(drawn, leaf.sharding)

    return jax.tree.map(fill, state)


def measure(state: Any, folder: Path, repeats: int) -> tuple[Spread, Spread]:
    """Return the seconds of the stall, and those until the checkpoint is on disk."""
    from medjax.runs.checkpoints import Checkpoints

    about = {"bench": {"source": "drawn", "fingerprint": "0"}}
    stalls, totals = [], []
    with Checkpoints(folder, {}, about, keep_last=1, keep_best=0) as checkpoints:
        # The first save does not count, because it starts orbax's threads.
        for step in range(repeats + 1):
            print(f"checkpoint {step} of {repeats} …", file=sys.stderr, flush=True)
            start = time.perf_counter()
            checkpoints.save(step, state)
            stalls.append(time.perf_counter() - start)
            checkpoints.wait()
            totals.append(time.perf_counter() - start)
    return Spread(tuple(stalls[1:])), Spread(tuple(totals[1:]))


def cost(
    stall: Spread, total: Spread, size: float, every: int, step_seconds: float
) -> Row:
    """Return the row of the table.

    Args:
        stall: Seconds until `save` returns.
        total: Seconds until the checkpoint is on disk.
        size: Size of a checkpoint, in GiB.
        every: Steps between two checkpoints.
        step_seconds: Seconds of one step.
    """
    interval = every * step_seconds
    return {
        "state, GiB": size,
        "stall, s": stall,
        "until on disk, s": total,
        "step, s": step_seconds,
        "checkpoint_every": every,
        "share of the run": report.percent(stall.median / (interval + stall.median)),
        "at most": report.percent(total.median / (interval + total.median)),
    }


def known_step_seconds(folder: Path, network: str, device: str) -> float:
    """Return the smallest median of medjax's seconds per step from `bench.step`.

    Raises:
        UserError: If the result is missing.
    """
    name = "step" if network == "sd15" else f"step-{network}"
    file = folder / f"{name}-{device}.json"
    if not file.is_file():
        raise UserError(
            f"{file} does not exist; set --step_seconds, or measure it first: "
            f"python -m bench.step --network={network}"
        )
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"]
    rows = [row for table in tables.values() for row in table]
    medians = [
        row["seconds per step"]["median"]
        for row in rows
        if row["competitor"] == "medjax"
    ]
    if not medians:
        raise UserError(f"{file} has no row for medjax; set --step_seconds")
    return min(medians)


def main() -> Path:
    """Measure as the flags say, and return the page that it writes."""
    flags = report.parser(__doc__)
    flags.add_argument("--network", choices=sorted(UNETS), default="sd15")
    flags.add_argument(
        "--folder",
        type=Path,
        help="folder on the disk to measure (the temporary folder)",
    )
    flags.add_argument("--step_seconds", type=float, help="seconds of a training step")
    flags.add_argument("--repeats", type=int, default=3, help="saves (%(default)s)")
    given = flags.parse_args()
    if given.folder is not None and not given.folder.is_dir():
        raise UserError(f"--folder={given.folder}: no such folder")
    on = report.machine()
    step_seconds = given.step_seconds or known_step_seconds(
        given.out, given.network, on.device
    )

    import jax

    from medjax.runs.sections import TrainConfig

    # Hide orbax's warning about waiting, because this measures the waiting.
    logging.getLogger("absl").setLevel(logging.ERROR)
    state = make_state(Settings(given.network))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / GIB
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        stall, total = measure(state, Path(folder), given.repeats)
    every = TrainConfig().checkpoint_every
    row = cost(stall, total, size, every, step_seconds)
    return report.write_results(
        "checkpoints" if given.network == "sd15" else f"checkpoints-{given.network}",
        "Cost of checkpoints",
        ABOUT,
        {f"A ControlNet of {given.network}, {given.repeats} repeats": [row]},
        on,
        PACKAGES,
        given.out,
    )


if __name__ == "__main__":
    report.run(main)
