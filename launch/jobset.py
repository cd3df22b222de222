"""A JobSet of Kubernetes that trains and resumes by itself, as a dict.

Fields are those of jobset.x-k8s.io/v1alpha2 in JobSet 0.12
(github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go) and of
batch/v1. The message patterns of its failure policy need JobSet 0.10.

How a run ends decides what follows:

| end of a pod | follows |
|---|---|
| exit code 75 (saved and stopped), or its node was taken away | the run resumes |
| exit code 2 (a mistake in the command) | the run fails |
| any other failure | the run resumes, at most `max_restarts` times |
"""

import dataclasses
from typing import Any, TypeAlias

from launch.slices import Slice
from medjax.cli import STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE

Manifest: TypeAlias = dict[str, Any]

CONTAINER = "train"
COORDINATOR_PORT = 8476
# Longest time from SIGTERM to SIGKILL. A spot node has less: Google gives 30 seconds.
GRACE_SECONDS = 300
# Pods start minutes apart, because nodes are made and images are fetched.
HOST_TIMEOUT_SECONDS = 900
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_PROCESS = "MEDJAX_PROCESS"
_EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
_SPOT = "cloud.google.com/gke-spot"
# Of launch/Dockerfile.
_USER = 1000
# Of the TPU's runtime and of multislice.
_TPU_PORTS = (8471, 8080)


@dataclasses.dataclass(frozen=True)
class Gpus:
    """GPUs of a run.

    Attributes:
        kind: Value of GKE's label ``cloud.google.com/gke-accelerator``.
        per_node: Number of GPUs of each node.
        nodes: Number of nodes.
    """

    kind: str
    per_node: int
    nodes: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a JobSet needs to know.

    Attributes:
        name: Name of the JobSet.
        image: Container image that has medjax.
        arguments: Arguments of medjax train.
        hardware: What each job runs on.
        slices: Number of TPU slices.
        spot: Whether the nodes may be taken away.
        privileged: Whether containers on TPUs are privileged.
        max_restarts: Number of restarts after failures.
        service_account: Kubernetes' service account of the pods.
        secret: A Secret; its entries become environment variables.
        mounts: Folders of the container, by PersistentVolumeClaim.
    """

    name: str
    image: str
    arguments: tuple[str, ...]
    hardware: Slice | Gpus
    slices: int = 1
    spot: bool = False
    privileged: bool = True
    max_restarts: int = 5
    service_account: str = ""
    secret: str = ""
    mounts: tuple[tuple[str, str], ...] = ()

    @property
    def pods(self) -> int:
        """Number of pods of each job."""
        on = self.hardware
        return on.hosts if isinstance(on, Slice) else on.nodes


def jobset(settings: Settings) -> Manifest:
    """Return the JobSet of a run."""
    metadata: Manifest = {"name": settings.name}
    if isinstance(settings.hardware, Slice):
        # All pods of a job on one slice, and no two jobs on the same.
        metadata["annotations"] = {_EXCLUSIVE: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": _failure_policy(settings.max_restarts),
            "replicatedJobs": [
                {
                    "name": CONTAINER,
                    "replicas": settings.slices,
                    "template": {"spec": _job(settings)},
                }
            ],
        },
    }


def _failure_policy(max_restarts: int) -> Manifest:
    return {
        "maxRestarts": max_restarts,
        # No pod of the past attempt is alive when the next one starts.
        "restartStrategy": "BlockingRecreate",
        "rules": [
            {
                "name": "mistake",
                "action": "FailJobSet",
                "onJobFailureReasons": ["PodFailurePolicy"],
                # Kubernetes' words for its first rule below.
                "onJobFailureMessagePatterns": [
                    f"failed with exit code {USER_ERROR_EXIT_CODE} matching"
                ],
            },
            {
                "name": "stopped",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
            },
        ],
    }


def _job(settings: Settings) -> Manifest:
    codes = [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": CONTAINER,
                "operator": "In",
                "values": [code],
            },
        }
        for code in (USER_ERROR_EXIT_CODE, STOPPED_EXIT_CODE)
    ]
    taken = {
        "action": "FailJob",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    return {
        "parallelism": settings.pods,
        "completions": settings.pods,
        "completionMode": "Indexed",
        # One pod cannot train alone: all of them start again.
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [*codes, taken]},
        "template": {"spec": _pod(settings)},
    }


def _pod(settings: Settings) -> Manifest:
    on = settings.hardware
    resource = "google.com/tpu" if isinstance(on, Slice) else "nvidia.com/gpu"
    selector, tolerations = _nodes(on), [{"key": resource, "operator": "Exists"}]
    if settings.spot:
        selector[_SPOT] = "true"
        tolerations.append({"key": _SPOT, "operator": "Exists"})
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [_container(settings, resource)],
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            *(
                {"name": claim, "persistentVolumeClaim": {"claimName": claim}}
                for claim, _ in settings.mounts
            ),
        ],
    }
    if settings.mounts:
        # The image's user may write there.
        pod["securityContext"] = {"fsGroup": _USER}
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    return pod


def _nodes(on: Slice | Gpus) -> dict[str, str]:
    """Return the labels of the nodes."""
    if isinstance(on, Gpus):
        return {"cloud.google.com/gke-accelerator": on.kind}
    return {
        "cloud.google.com/gke-tpu-accelerator": on.generation.accelerator,
        "cloud.google.com/gke-tpu-topology": on.shape,
    }


def _container(settings: Settings, resource: str) -> Manifest:
    on = settings.hardware
    count = on.chips_per_host if isinstance(on, Slice) else on.per_node
    container: Manifest = {
        "name": CONTAINER,
        "image": settings.image,
        # A tag that was pushed again names another image.
        "imagePullPolicy": "Always",
        "command": ["medjax", "train"],
        "args": [*_joining(settings), *map(_literal, settings.arguments)],
        "resources": {"limits": {resource: count}, "requests": {resource: count}},
        "volumeMounts": [
            # The data workers hand over batches there; the default is 64 MB.
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *({"name": claim, "mountPath": path} for claim, path in settings.mounts),
        ],
    }
    if isinstance(on, Slice):
        container["ports"] = [{"containerPort": port} for port in _TPU_PORTS]
        # The device files belong to root, and a TPU's driver locks much memory:
        # cloud.google.com/kubernetes-engine/docs/how-to/tpus#privileged-mode
        container["securityContext"] = {
            "runAsUser": 0,
            **({"privileged": True} if settings.privileged else {}),
        }
    elif settings.pods > 1:
        container["ports"] = [{"containerPort": COORDINATOR_PORT}]
        container["env"] = [
            {"name": _PROCESS, "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}
        ]
    if settings.secret:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    return container


def _joining(settings: Settings) -> list[str]:
    """Return the flags by which the processes meet. On TPUs, jax finds the others."""
    if settings.pods * settings.slices == 1:
        return []
    flags = [f"--host_timeout={HOST_TIMEOUT_SECONDS}"]
    if isinstance(settings.hardware, Gpus):
        first = f"{settings.name}-{CONTAINER}-0-0.{settings.name}"
        flags += [
            f"--coordinator_address={first}:{COORDINATOR_PORT}",
            f"--num_processes={settings.pods}",
            # Kubernetes puts in the value of the variable.
            f"--process_id=$({_PROCESS})",
        ]
    return flags


def _literal(argument: str) -> str:
    """Return an argument in which Kubernetes replaces nothing: it reads $$ as $."""
    return argument.replace("$", "$$")
