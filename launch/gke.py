r"""Train on Google Kubernetes Engine: TPU slices, several slices, or GPUs.

    python -m launch.gke --image=IMAGE --topology=v6e:4x4 --slices=2 --spot \
        -- --config=cxr_controlnet:v6e --workdir=gs://BUCKET/RUN
    python -m launch.gke --image=IMAGE --gpu=nvidia-h100-80gb --gpus=8 --nodes=2 \
        -- --config=cxr_controlnet:gpu80 --workdir=gs://BUCKET/RUN

It creates a JobSet, which resumes after a preemption or a failure. With --node_pools,
it first creates a node pool for each slice. Nodes exist only while the run needs them.
"""

import argparse
import sys

from launch.jobset import Gpus, Settings, jobset
from launch.slices import Slice, find_slice
from launch.steps import (
    Parser,
    Run,
    Step,
    as_yaml,
    check_least,
    show_or_execute,
    start,
)
from medjax.errors import UserError

_LONGEST_POOL = 40


def parser() -> Parser:
    """Return the parser of the flags."""
    flags = Parser(__doc__, "launch.gke")
    flags.add_argument(
        "--image", required=True, help="image made from launch/Dockerfile"
    )
    flags.add_argument("--topology", help="TPU slice, as for medjax preflight")
    flags.add_argument("--slices", type=int, default=1, help="number of TPU slices")
    flags.add_argument("--gpu", help="GPU type, such as nvidia-h100-80gb")
    flags.add_argument("--gpus", type=int, default=1, help="GPUs of each node")
    flags.add_argument("--nodes", type=int, default=1, help="nodes with GPUs")
    flags.add_argument(
        "--spot", action="store_true", help="nodes that may be taken away"
    )
    flags.add_argument(
        "--noprivileged",
        action="store_true",
        help="containers on TPUs without privileges, as Autopilot requires",
    )
    flags.add_argument(
        "--max_restarts",
        type=int,
        default=5,
        help="restarts after failures (%(default)s); preemptions do not count",
    )
    flags.add_argument("--service_account", default="", help="service account of pods")
    flags.add_argument("--secret", default="", help="Secret with environment variables")
    flags.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="CLAIM:/PATH",
        help="a PersistentVolumeClaim and its folder; may be repeated",
    )
    flags.add_argument("--cluster", help="cluster to connect kubectl to first")
    flags.add_argument("--location", help="region or zone of the cluster")
    flags.add_argument(
        "--node_pools", metavar="ZONE", help="create the node pools first, in this zone"
    )
    flags.add_argument(
        "--replace",
        action="store_true",
        help="first delete the JobSet of this name, which saves and stops its run",
    )
    return flags


def launch(flags: argparse.Namespace, training: tuple[str, ...]) -> int:
    """Launch as the flags say; return the exit code.

    Raises:
        UserError: If flags are wrong, or do not fit together.
    """
    return show_or_execute(steps(flags, training), flags.dry_run)


def steps(flags: argparse.Namespace, training: tuple[str, ...]) -> list[Step]:
    """Return the steps of a launch."""
    settings = _settings(flags, training)
    found: list[Step] = []
    if flags.cluster:
        words = ("gcloud", "container", "clusters", "get-credentials", flags.cluster)
        found.append(Run((*words, f"--location={_location(flags)}")))
    if flags.node_pools:
        found += _node_pools(flags, settings)
    if flags.replace:
        words = ("kubectl", "delete", "jobset", flags.name, "--ignore-not-found")
        found.append(Run(words))
    found.append(Run(("kubectl", "create", "-f", "-"), as_yaml(jobset(settings))))
    return found


def _settings(flags: argparse.Namespace, training: tuple[str, ...]) -> Settings:
    for name in ("slices", "gpus", "nodes"):
        check_least(name, getattr(flags, name))
    check_least("max_restarts", flags.max_restarts, 0)
    if bool(flags.topology) == bool(flags.gpu):
        raise UserError("expected either --topology=v6e:4x4 or --gpu=nvidia-h100-80gb")
    if flags.gpu and flags.slices > 1:
        raise UserError("--slices counts TPU slices; for GPUs, set --nodes")
    if flags.topology and (flags.gpus > 1 or flags.nodes > 1):
        raise UserError("--gpus and --nodes count GPUs; for TPUs, set --slices")
    return Settings(
        name=flags.name,
        image=flags.image,
        arguments=training,
        hardware=find_slice(flags.topology)
        if flags.topology
        else Gpus(flags.gpu, flags.gpus, flags.nodes),
        slices=flags.slices,
        spot=flags.spot,
        privileged=not flags.noprivileged,
        max_restarts=flags.max_restarts,
        service_account=flags.service_account,
        secret=flags.secret,
        mounts=tuple(map(_mount, flags.mount)),
    )


def _mount(text: str) -> tuple[str, str]:
    claim, _, path = text.partition(":")
    if not claim or not path.startswith("/"):
        raise UserError(f"--mount={text}: expected CLAIM:/PATH")
    return claim, path


def _location(flags: argparse.Namespace) -> str:
    if not flags.location:
        raise UserError("--location is missing: the region or zone of the cluster")
    return str(flags.location)


def _node_pools(flags: argparse.Namespace, settings: Settings) -> list[Step]:
    """Return the commands that create one node pool for each slice, without nodes."""
    on = settings.hardware
    if not isinstance(on, Slice):
        raise UserError("--node_pools creates pools of TPUs; see docs/how_to/cloud.md")
    if not flags.cluster:
        raise UserError("--node_pools requires --cluster and --location")
    if len(f"{settings.name}-{settings.slices - 1}") > _LONGEST_POOL:
        raise UserError(
            f"--name={settings.name}: too long, because the names of the node pools "
            f"({settings.name}-0 …) have at most {_LONGEST_POOL} characters"
        )
    return [
        Run(
            (
                *("gcloud", "container", "node-pools", "create"),
                f"{settings.name}-{number}",
                f"--cluster={flags.cluster}",
                f"--location={_location(flags)}",
                f"--node-locations={flags.node_pools}",
                f"--machine-type={on.machine_type}",
                *((f"--tpu-topology={on.shape}",) if on.hosts > 1 else ()),
                *("--num-nodes=0", "--enable-autoscaling", "--min-nodes=0"),
                f"--max-nodes={on.hosts}",
                *(("--spot",) if settings.spot else ()),
            )
        )
        for number in range(settings.slices)
    ]


def main(words: list[str] | None = None) -> int:
    """Launch; return the exit code."""
    return start(parser(), launch, words)


if __name__ == "__main__":
    sys.exit(main())
