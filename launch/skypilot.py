r"""Train with SkyPilot: GPUs of any cloud, or a small TPU slice of Google Cloud.

    python -m launch.skypilot --gpus=A100-80GB:8 --spot \
        -- --config=cxr_controlnet:gpu80 --workdir=gs://BUCKET/RUN
    python -m launch.skypilot --topology=v6e:2x4 --spot \
        -- --config=cxr_controlnet:v6e --workdir=gs://BUCKET/RUN

It writes NAME.sky.yaml and starts a managed job, which SkyPilot resumes on a new
machine after a preemption. The job uploads and installs this checkout. Fields are those
of SkyPilot 0.14 (github.com/skypilot-org/skypilot, sky/utils/schemas.py).
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from launch.jobset import COORDINATOR_PORT, HOST_TIMEOUT_SECONDS
from launch.slices import find_slice
from launch.steps import (
    Parser,
    Run,
    Step,
    Write,
    as_yaml,
    check_least,
    show_or_execute,
    start,
)
from medjax.cli import STOPPED_EXIT_CODE
from medjax.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
# The Python of a cloud's image is often too old, so uv brings one.
_SETUP = """\
set -e
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
export PATH="$HOME/.local/bin:$PATH"
uv venv --python 3.11 --allow-existing ~/medjax-venv
uv pip install --python ~/medjax-venv/bin/python -c constraints.txt {target}
"""
# The shell of each node puts in these values.
_JOINING = (
    '--coordinator_address="$(head -n 1 <<<"$SKYPILOT_NODE_IPS")":{port} '
    '--num_processes="$SKYPILOT_NUM_NODES" --process_id="$SKYPILOT_NODE_RANK"'
)


def parser() -> Parser:
    """Return the parser of the flags."""
    flags = Parser(__doc__, "launch.skypilot")
    flags.add_argument("--gpus", help="GPUs of each node, such as A100-80GB:8")
    flags.add_argument("--nodes", type=int, default=1, help="nodes with GPUs")
    flags.add_argument("--topology", help="TPU slice of one host, such as v6e:2x4")
    flags.add_argument("--infra", help="cloud, region and zone, such as gcp/us-east5")
    flags.add_argument("--spot", action="store_true", help="spot machines")
    flags.add_argument(
        "--disk_gb", type=int, default=200, help="disk of each node (%(default)s)"
    )
    flags.add_argument(
        "--max_restarts",
        type=int,
        default=5,
        help="restarts after failures (%(default)s); preemptions do not count",
    )
    flags.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable to pass on; may be repeated",
    )
    return flags


def task(flags: argparse.Namespace, training: tuple[str, ...]) -> dict[str, Any]:
    """Return the task as SkyPilot's YAML holds it.

    Raises:
        UserError: If flags do not fit together.
    """
    if bool(flags.topology) == bool(flags.gpus):
        raise UserError("expected either --gpus=A100-80GB:8 or --topology=v6e:2x4")
    if flags.topology and flags.nodes > 1:
        raise UserError("--nodes counts nodes with GPUs; a TPU slice here has one host")
    for name, least in (("nodes", 1), ("disk_gb", 1), ("max_restarts", 0)):
        check_least(name, getattr(flags, name), least)
    extra = "tpu" if flags.topology else "cuda"
    return {
        "name": flags.name,
        "workdir": str(REPOSITORY),
        "num_nodes": flags.nodes,
        "resources": _resources(flags),
        "setup": _SETUP.format(target=shlex.quote(f".[{extra}]")),
        "run": _run(flags.nodes, training),
    }


def _resources(flags: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if flags.topology:
        on = find_slice(flags.topology)
        if on.hosts > 1:
            raise UserError(
                f"--topology={flags.topology} has {on.hosts} hosts. SkyPilot runs one "
                "host here, launch.gke any number"
            )
        found["accelerators"] = f"tpu-{on.accelerator_type}"
        found["accelerator_args"] = {
            "tpu_vm": True,
            "runtime_version": on.generation.runtime,
        }
    else:
        found["accelerators"] = flags.gpus
    if flags.infra:
        found["infra"] = flags.infra
    return found | {
        "use_spot": flags.spot,
        "disk_size": flags.disk_gb,
        "job_recovery": {
            "max_restarts_on_errors": flags.max_restarts,
            # It saved and stopped.
            "recover_on_exit_codes": [STOPPED_EXIT_CODE],
        },
    }


def _run(nodes: int, training: tuple[str, ...]) -> str:
    words = "~/medjax-venv/bin/medjax train"
    if nodes > 1:
        joining = _JOINING.format(port=COORDINATOR_PORT)
        words += f" --host_timeout={HOST_TIMEOUT_SECONDS} {joining}"
    return f"{words} {shlex.join(training)}\n"


def steps(flags: argparse.Namespace, training: tuple[str, ...]) -> list[Step]:
    """Return the steps of a launch."""
    file = Path(f"{flags.name}.sky.yaml")
    words = ["sky", "jobs", "launch", f"--name={flags.name}", "--yes", "--detach-run"]
    for name in flags.secret:
        words += ["--secret", name]
    return [
        Write(file, as_yaml(task(flags, training))),
        Run((*words, str(file))),
    ]


def launch(flags: argparse.Namespace, training: tuple[str, ...]) -> int:
    """Launch as the flags say; return the exit code."""
    return show_or_execute(steps(flags, training), flags.dry_run)


def main(words: list[str] | None = None) -> int:
    """Launch; return the exit code."""
    return start(parser(), launch, words)


if __name__ == "__main__":
    sys.exit(main())
