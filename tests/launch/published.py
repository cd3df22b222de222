"""What the platforms publish about their specs, as far as the launchers use it.

Written by hand from:

* JobSet 0.12, jobset.x-k8s.io/v1alpha2:
  github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go and
  config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml;
* Kubernetes 1.33, batch/v1 and core/v1: kubernetes.io/docs/reference/kubernetes-api;
* SkyPilot 0.14: github.com/skypilot-org/skypilot, sky/utils/schemas.py;
* Google Cloud SDK 528: cloud.google.com/sdk/gcloud/reference;
* SLURM 24.05: slurm.schedmd.com/sbatch.html.

An object with other fields than those here is invalid, so that a misspelt one is found.
"""

from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def fields(required: str = "", **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


def several(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


_LABEL: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
_QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": "integer"}}
_CONTAINER = fields(
    "name image",
    name=_LABEL,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    command=several(TEXT),
    args=several(TEXT),
    resources=fields(limits=_QUANTITIES, requests=_QUANTITIES),
    volumeMounts=several(fields("name mountPath", name=_LABEL, mountPath=TEXT)),
    ports=several(fields("containerPort", containerPort=WHOLE)),
    env=several(
        fields(
            "name",
            name=TEXT,
            value=TEXT,
            valueFrom=fields(fieldRef=fields("fieldPath", fieldPath=TEXT)),
        )
    ),
    envFrom=several(fields(secretRef=fields("name", name=TEXT))),
    securityContext=fields(runAsUser=WHOLE, privileged={"type": "boolean"}),
)
_POD = fields(
    "containers",
    restartPolicy=one_of("Never", "OnFailure"),
    terminationGracePeriodSeconds=WHOLE,
    nodeSelector=TEXTS,
    tolerations=several(
        fields(key=TEXT, operator=one_of("Exists", "Equal"), value=TEXT, effect=TEXT)
    ),
    containers=several(_CONTAINER),
    volumes=several(
        fields(
            "name",
            name=_LABEL,
            emptyDir=fields(medium=one_of("", "Memory")),
            persistentVolumeClaim=fields("claimName", claimName=TEXT),
        )
    ),
    serviceAccountName=TEXT,
    securityContext=fields(fsGroup=WHOLE),
)
_POD_FAILURE = fields(
    "action",
    action=one_of("FailJob", "FailIndex", "Ignore", "Count"),
    onExitCodes=fields(
        "operator values",
        containerName=TEXT,
        operator=one_of("In", "NotIn"),
        values=several(WHOLE),
    ),
    onPodConditions=several(
        fields("type", type=TEXT, status=one_of("True", "False", "Unknown"))
    ),
)
_JOB = fields(
    "template",
    parallelism=WHOLE,
    completions=WHOLE,
    completionMode=one_of("Indexed", "NonIndexed"),
    backoffLimit=WHOLE,
    podFailurePolicy=fields("rules", rules=several(_POD_FAILURE)),
    template=fields("spec", spec=_POD),
)
_FAILURE_RULE = fields(
    "name action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action=one_of(
        *("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
        *("RestartJob", "RestartJobAndIgnoreMaxRestarts"),
    ),
    onJobFailureReasons=several(
        one_of(
            *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
            *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
        )
    ),
    onJobFailureMessagePatterns=several(TEXT),
    targetReplicatedJobs=several(TEXT),
)
JOBSET = Draft202012Validator(
    fields(
        "apiVersion kind metadata spec",
        apiVersion=one_of("jobset.x-k8s.io/v1alpha2"),
        kind=one_of("JobSet"),
        metadata=fields("name", name=_LABEL, annotations=TEXTS, labels=TEXTS),
        spec=fields(
            failurePolicy=fields(
                maxRestarts=WHOLE,
                restartStrategy=one_of(
                    "Recreate", "BlockingRecreate", "InPlaceRestart"
                ),
                rules=several(_FAILURE_RULE),
            ),
            replicatedJobs=several(
                fields(
                    "name template",
                    name=_LABEL,
                    replicas=WHOLE,
                    template=fields(spec=_JOB),
                )
            ),
        ),
    )
)
SKYPILOT = Draft202012Validator(
    fields(
        "",
        name=TEXT,
        workdir=TEXT,
        num_nodes={"type": "integer"},
        resources=fields(
            "",
            accelerators=TEXT,
            accelerator_args=fields(runtime_version=TEXT, tpu_vm={"type": "boolean"}),
            infra=TEXT,
            use_spot={"type": "boolean"},
            disk_size={"type": "integer"},
            job_recovery=fields(
                max_restarts_on_errors=WHOLE,
                recover_on_exit_codes=several(
                    {"type": "integer", "minimum": 0, "maximum": 255}
                ),
            ),
        ),
        setup=TEXT,
        run=TEXT,
    )
)
# Options by the words of a command. Each takes its value after "=".
OPTIONS = {
    "gcloud container clusters get-credentials": "--location",
    "gcloud container node-pools create": (
        "--cluster --location --node-locations --machine-type --tpu-topology "
        "--num-nodes --enable-autoscaling --min-nodes --max-nodes --spot"
    ),
    "gcloud compute tpus queued-resources create": (
        "--zone --node-id --accelerator-type --runtime-version --spot "
        "--service-account --scopes"
    ),
    "gcloud compute tpus queued-resources describe": "--zone --format",
    "gcloud compute tpus queued-resources delete": "--zone --force --quiet",
    "gcloud compute tpus tpu-vm ssh": "--zone --worker --command",
    "gcloud compute instances create": (
        "--zone --machine-type --accelerator --image-family --image-project "
        "--boot-disk-size --maintenance-policy --provisioning-model "
        "--instance-termination-action --service-account --scopes"
    ),
    "gcloud compute instances describe": "--zone --format",
    "gcloud compute instances start": "--zone",
    "gcloud compute instances delete": "--zone --quiet",
    "gcloud compute ssh": "--zone --command",
    "kubectl create": "-f -",
    "kubectl delete jobset": "--ignore-not-found",
    "sky jobs launch": "--name --yes --detach-run --secret",
    "sbatch": (
        "--job-name --nodes --gpus-per-node --ntasks-per-node --cpus-per-task --time "
        "--partition --account --qos"
    ),
}


def unknown_options(words: list[str]) -> list[str]:
    """Return the options of a command that are not published."""
    command = max(
        (one for one in OPTIONS if words[: len(one.split())] == one.split()),
        key=len,
        default=None,
    )
    if command is None:
        return words
    known = OPTIONS[command].split()
    given = (word.partition("=")[0] for word in words if word.startswith("-"))
    return [one for one in given if one not in known]
