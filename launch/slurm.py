r"""Train on a SLURM cluster: submit launch/slurm.sh with the nodes and time of a run.

    python -m launch.slurm --nodes=2 --gpus=4 --hours=24 --partition=PARTITION \
        -- --config=cxr_controlnet:gpu80 --workdir=/scratch/RUN

Before the time limit and at a preemption, the run saves, and the job returns to the
queue. Give further options of sbatch as --sbatch=--qos=QOS.
"""

import argparse
import sys
from pathlib import Path

from launch.steps import Parser, Run, Step, check_least, show_or_execute, start

SCRIPT = Path(__file__).with_name("slurm.sh")


def parser() -> Parser:
    """Return the parser of the flags."""
    flags = Parser(__doc__, "launch.slurm")
    flags.add_argument("--nodes", type=int, default=1, help="nodes (%(default)s)")
    flags.add_argument(
        "--gpus", type=int, default=1, help="GPUs of each node, one task for each"
    )
    flags.add_argument(
        "--cpus", type=int, default=8, help="processor cores of each task (%(default)s)"
    )
    flags.add_argument(
        "--hours", type=int, default=24, help="time limit of one turn (%(default)s)"
    )
    flags.add_argument("--partition", help="partition of the cluster")
    flags.add_argument("--account", help="account that pays")
    flags.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="further option of sbatch; may be repeated",
    )
    return flags


def steps(flags: argparse.Namespace, training: tuple[str, ...]) -> list[Step]:
    """Return the steps of a launch."""
    for name in ("nodes", "gpus", "cpus", "hours"):
        check_least(name, getattr(flags, name))
    chosen = {"--partition": flags.partition, "--account": flags.account}
    words = (
        "sbatch",
        f"--job-name={flags.name}",
        f"--nodes={flags.nodes}",
        f"--gpus-per-node={flags.gpus}",
        f"--ntasks-per-node={flags.gpus}",
        f"--cpus-per-task={flags.cpus}",
        f"--time={flags.hours}:00:00",
        *(f"{name}={value}" for name, value in chosen.items() if value),
        *flags.sbatch,
    )
    shown = f"The script, {SCRIPT.name}:\n\n{SCRIPT.read_text()}"
    return [Run((*words, str(SCRIPT), *training), comment=shown)]


def launch(flags: argparse.Namespace, training: tuple[str, ...]) -> int:
    """Launch as the flags say; return the exit code."""
    return show_or_execute(steps(flags, training), flags.dry_run)


def main(words: list[str] | None = None) -> int:
    """Launch; return the exit code."""
    return start(parser(), launch, words)


if __name__ == "__main__":
    sys.exit(main())
