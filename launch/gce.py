r"""Train on one machine of Google Compute Engine with GPUs.

    python -m launch.gce --zone=ZONE --image=IMAGE --machine_type=a2-ultragpu-1g \
        --spot -- --config=cxr_controlnet:gpu80 --workdir=gs://BUCKET/RUN

It creates the machine, trains, starts the machine again after a preemption, and deletes
it after the run. The run outlives this command; give the same command again to follow
it.
"""

import argparse
import sys

from launch.machines import Machine, host_command
from launch.steps import Parser, Run, check_least, start
from launch.tpu_vm import add_flags, keep_or_show

_INSTANCES = ("gcloud", "compute", "instances")
# An image with NVIDIA's driver, docker and its GPU runtime:
# cloud.google.com/deep-learning-vm/docs/images
IMAGE_FAMILY = "common-cu129-ubuntu-2204-nvidia-580"
IMAGE_PROJECT = "deeplearning-platform-release"


def parser() -> Parser:
    """Return the parser of the flags."""
    flags = Parser(__doc__, "launch.gce")
    add_flags(flags)
    flags.add_argument(
        "--machine_type", required=True, help="such as g2-standard-8 or a2-ultragpu-1g"
    )
    flags.add_argument(
        "--accelerator", help="GPUs, if the machine type has none: type=…,count=…"
    )
    flags.add_argument(
        "--disk_gb", type=int, default=200, help="size of the disk (%(default)s)"
    )
    flags.add_argument(
        "--image_family", default=IMAGE_FAMILY, help="system (%(default)s)"
    )
    flags.add_argument(
        "--image_project", default=IMAGE_PROJECT, help="its project (%(default)s)"
    )
    return flags


def machine(flags: argparse.Namespace, training: tuple[str, ...]) -> Machine:
    """Return the machine to rent."""
    check_least("disk_gb", flags.disk_gb)
    zone = f"--zone={flags.zone}"
    chosen = {
        "--accelerator": flags.accelerator,
        "--service-account": flags.service_account,
    }
    return Machine(
        create=Run(
            (
                *(*_INSTANCES, "create", flags.name, zone),
                f"--machine-type={flags.machine_type}",
                f"--image-family={flags.image_family}",
                f"--image-project={flags.image_project}",
                f"--boot-disk-size={flags.disk_gb}GB",
                # Machines with GPUs cannot move while they run.
                "--maintenance-policy=TERMINATE",
                "--scopes=https://www.googleapis.com/auth/cloud-platform",
                *(f"{name}={value}" for name, value in chosen.items() if value),
                *(
                    ("--provisioning-model=SPOT", "--instance-termination-action=STOP")
                    if flags.spot
                    else ()
                ),
            )
        ),
        describe=Run(
            (*_INSTANCES, "describe", flags.name, zone, "--format=value(status)")
        ),
        train=Run(
            (
                *("gcloud", "compute", "ssh", flags.name, zone),
                f"--command={host_command('cuda', flags.image, training)}",
            )
        ),
        revive=(Run((*_INSTANCES, "start", flags.name, zone)),),
        delete=Run((*_INSTANCES, "delete", flags.name, zone, "--quiet")),
        ready="RUNNING",
        lost=("TERMINATED", "STOPPED"),
    )


def launch(flags: argparse.Namespace, training: tuple[str, ...]) -> int:
    """Launch as the flags say; return the exit code."""
    return keep_or_show(machine(flags, training), flags)


def main(words: list[str] | None = None) -> int:
    """Launch; return the exit code."""
    return start(parser(), launch, words)


if __name__ == "__main__":
    sys.exit(main())
