r"""Train on a Cloud TPU VM, by a queued resource.

    python -m launch.tpu_vm --zone=ZONE --image=IMAGE --topology=v6e:4x4 --spot \
        -- --config=cxr_controlnet:v6e --workdir=gs://BUCKET/RUN

It waits for the TPU, trains on all its hosts, requests it again after a preemption, and
deletes it after the run. The run outlives this command; give the same command again to
follow it. Google no longer develops the Cloud TPU API, which has no TPU after v6e.
"""

import argparse
import sys

from launch.jobset import HOST_TIMEOUT_SECONDS
from launch.machines import Machine, host_command, keep_training
from launch.slices import find_slice
from launch.steps import Parser, Run, check_least, start

_QUEUED = ("gcloud", "compute", "tpus", "queued-resources")


def parser() -> Parser:
    """Return the parser of the flags."""
    flags = Parser(__doc__, "launch.tpu_vm")
    add_flags(flags)
    flags.add_argument("--topology", required=True, help="slice, such as v6e:4x4")
    flags.add_argument("--runtime", help="version of the TPU's software")
    return flags


def add_flags(flags: Parser) -> None:
    """Define the flags of machines that are rented by a loop."""
    flags.add_argument("--zone", required=True, help="zone of the machine")
    flags.add_argument(
        "--image", required=True, help="image made from launch/Dockerfile"
    )
    flags.add_argument("--spot", action="store_true", help="may be taken away")
    flags.add_argument("--service_account", help="service account of the machine")
    flags.add_argument(
        "--max_restarts",
        type=int,
        default=5,
        help="restarts after failures (%(default)s); preemptions do not count",
    )
    flags.add_argument(
        "--keep", action="store_true", help="keep the machine, and its bill, at the end"
    )


def machine(flags: argparse.Namespace, training: tuple[str, ...]) -> Machine:
    """Return the TPU to rent.

    Raises:
        UserError: If the topology is unknown, or nobody rents it.
    """
    on = find_slice(flags.topology)
    # Hosts fetch the image at different speeds.
    joining = [f"--host_timeout={HOST_TIMEOUT_SECONDS}"] if on.hosts > 1 else []
    zone = f"--zone={flags.zone}"
    create = Run(
        (
            *(*_QUEUED, "create", flags.name, zone),
            f"--node-id={flags.name}",
            f"--accelerator-type={on.accelerator_type}",
            f"--runtime-version={flags.runtime or on.generation.runtime}",
            *(("--spot",) if flags.spot else ()),
            *(
                (f"--service-account={flags.service_account}",)
                if flags.service_account
                else ()
            ),
            # Access to buckets and images, as far as the service account has it.
            "--scopes=https://www.googleapis.com/auth/cloud-platform",
        )
    )
    delete = Run((*_QUEUED, "delete", flags.name, zone, "--force", "--quiet"))
    return Machine(
        create=create,
        describe=Run(
            (*_QUEUED, "describe", flags.name, zone, "--format=value(state.state)")
        ),
        train=Run(
            (
                *("gcloud", "compute", "tpus", "tpu-vm", "ssh", flags.name, zone),
                "--worker=all",
                f"--command={host_command('tpu', flags.image, [*joining, *training])}",
            )
        ),
        # A queued resource that was taken away does not come back.
        revive=(delete, create),
        delete=delete,
        ready="ACTIVE",
        lost=("SUSPENDED",),
        failed=("FAILED",),
    )


def launch(flags: argparse.Namespace, training: tuple[str, ...]) -> int:
    """Launch as the flags say; return the exit code."""
    return keep_or_show(machine(flags, training), flags)


def keep_or_show(on: Machine, flags: argparse.Namespace) -> int:
    """Keep a run alive, or show the commands; return the exit code."""
    check_least("max_restarts", flags.max_restarts, 0)
    if flags.dry_run:
        print(on.shown(), end="")
        return 0
    return keep_training(on, keep=flags.keep, max_restarts=flags.max_restarts)


def main(words: list[str] | None = None) -> int:
    """Launch; return the exit code."""
    return start(parser(), launch, words)


if __name__ == "__main__":
    sys.exit(main())
