"""The JobSet on Kubernetes: its form, its sizes, what follows a failure, its words."""

import copy
import re
import subprocess

import pytest
import yaml

from launch import gke
from launch.slices import GENERATIONS, find_slice
from medjax.compiling.topologies import LOCAL, SHAPES, known_topologies
from medjax.errors import UserError
from tests.launch.arguments import PLAIN, nasty
from tests.launch.published import JOBSET, unknown_options
from tests.pages import REPOSITORY

KINDS = {
    "one host": ("--topology=v6e:2x4",),
    "several hosts": ("--topology=v5p:2x2x4", "--spot", "--secret=tokens"),
    "several slices": ("--topology=v5e:4x4", "--slices=3", "--service_account=me"),
    "without privileges": ("--topology=v6e:4x4", "--slices=2", "--noprivileged"),
    "a GPU": ("--gpu=nvidia-l4", "--mount=data:/data", "--mount=runs:/runs"),
    "nodes with GPUs": ("--gpu=nvidia-h100-80gb", "--gpus=8", "--nodes=4", "--spot"),
}


POOLS = ("--topology=v6e:1", "--cluster=c", "--location=us-east5", "--node_pools=a")


def spec(*flags, training=PLAIN):
    parsed = gke.parser().parse_args(["--image=IMAGE", *flags])
    return yaml.safe_load(gke.steps(parsed, training)[-1].stdin)


def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(jobset):
    return job(jobset)["template"]["spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_spec_is_valid(kind):
    JOBSET.validate(spec(*KINDS[kind]))


def test_a_misspelt_field_is_invalid():
    valid = spec(*KINDS["nodes with GPUs"])
    for place in (
        lambda one: one["spec"],
        lambda one: one["spec"]["failurePolicy"],
        lambda one: one["spec"]["failurePolicy"]["rules"][0],
        job,
        lambda one: job(one)["podFailurePolicy"]["rules"][0],
        pod,
        lambda one: pod(one)["containers"][0],
    ):
        wrong = copy.deepcopy(valid)
        place(wrong)["misspelt"] = 1
        assert JOBSET.is_valid(valid) and not JOBSET.is_valid(wrong)


@pytest.mark.parametrize("name", known_topologies())
def test_pods_have_all_chips_of_a_topology(name):
    kind, _, shape = name.partition(":")
    if name == LOCAL or (shape == "1" and kind in ("v4", "v5p")):
        with pytest.raises(UserError, match="rent"):
            find_slice(name)
        return
    on = find_slice(name)
    found = spec(f"--topology={name}", "--slices=2")
    chips = pod(found)["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert chips * job(found)["completions"] == on.chips
    assert on.machine_type.endswith(f"-{chips}t")
    selector = pod(found)["nodeSelector"]
    sides = selector["cloud.google.com/gke-tpu-topology"].split("x")
    assert len(sides) == (3 if kind in ("v4", "v5p") else 2)
    assert on.chips == eval("*".join(sides))
    label = selector["cloud.google.com/gke-tpu-accelerator"]
    assert label == GENERATIONS[kind].accelerator


def test_every_generation_of_preflight_can_be_rented():
    assert GENERATIONS.keys() == SHAPES.keys()


@pytest.mark.parametrize(
    ("name", "machine", "hosts", "cloud"),
    [
        # From the tables that launch/slices.py names.
        ("v5e:1x1", "ct5lp-hightpu-1t", 1, "v5litepod-1"),
        ("v5e:2x2", "ct5lp-hightpu-4t", 1, "v5litepod-4"),
        ("v5e:2x4", "ct5lp-hightpu-8t", 1, "v5litepod-8"),
        ("v5e:16x16", "ct5lp-hightpu-4t", 64, "v5litepod-256"),
        ("v6e:1", "ct6e-standard-1t", 1, "v6e-1"),
        ("v6e:4x4", "ct6e-standard-4t", 4, "v6e-16"),
        ("v4:2x2x1", "ct4p-hightpu-4t", 1, "v4-8"),
        ("v5p:2x2x2", "ct5p-hightpu-4t", 2, "v5p-16"),
        ("v5p:4x4x4", "ct5p-hightpu-4t", 16, "v5p-128"),
    ],
)
def test_slices_have_the_names_of_google_tables(name, machine, hosts, cloud):
    on = find_slice(name)
    assert (on.machine_type, on.hosts, on.accelerator_type) == (machine, hosts, cloud)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_memory_and_time_to_save(kind):
    found = pod(spec(*KINDS[kind]))
    mounts = {one["mountPath"] for one in found["containers"][0]["volumeMounts"]}
    assert "/dev/shm" in mounts
    assert found["terminationGracePeriodSeconds"] >= 300
    volumes = {one["name"] for one in found["volumes"]}
    assert volumes == {one["name"] for one in found["containers"][0]["volumeMounts"]}


def test_the_user_of_the_image_may_write_to_mounted_folders():
    text = (REPOSITORY / "launch" / "Dockerfile").read_text()
    group = int(re.search(r"useradd .*--uid=(\d+)", text)[1])
    assert pod(spec(*KINDS["a GPU"]))["securityContext"] == {"fsGroup": group}
    assert "securityContext" not in pod(spec(*KINDS["one host"]))


def follows(jobset, code=None, taken=False):
    """Return what the controllers of Kubernetes do after the end of a pod.

    Rules and words are those of kubernetes/pkg/controller/job/pod_failure_policy.go.
    """
    reason, message = "BackoffLimitExceeded", "Job has reached the backoff limit"
    for number, rule in enumerate(job(jobset)["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        by_code = code in rule.get("onExitCodes", {}).get("values", [])
        if by_code or (taken and "onPodConditions" in rule):
            reason = "PodFailurePolicy"
            message = (
                f"Container train for pod default/x failed with exit code {code} "
                f"matching FailJob rule at index {number}"
                if by_code
                else "Pod default/x has condition DisruptionTarget matching FailJob "
                f"rule at index {number}"
            )
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(
            re.search(one, message) for one in patterns
        ):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("end", "action"),
    [
        ({"code": 75}, "RestartJobSetAndIgnoreMaxRestarts"),
        ({"code": 137, "taken": True}, "RestartJobSetAndIgnoreMaxRestarts"),
        ({"code": 75, "taken": True}, "RestartJobSetAndIgnoreMaxRestarts"),
        ({"code": 2}, "FailJobSet"),
        ({"code": 1}, "RestartJobSet"),
        ({"code": 134}, "RestartJobSet"),
    ],
)
def test_a_preempted_run_resumes_and_a_mistake_does_not(end, action):
    found = spec(*KINDS["several hosts"], "--max_restarts=7")
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert job(found)["backoffLimit"] == 0
    assert pod(found)["restartPolicy"] == "Never"
    assert follows(found, **end) == action


def expanded(text, variables):
    """Replace variables as the kubelet does.

    From kubernetes/third_party/forked/golang/expansion/expand.go: ``$$`` becomes ``$``,
    and an unknown variable stays as it is.
    """

    def value(match):
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, text)


@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_arguments_arrive_unchanged(seed, recorder):
    kind = list(KINDS)[seed]
    assert gke.main(["--image=IMAGE", *KINDS[kind], "--", *nasty(seed)]) == 0
    ((words, text),) = recorder.calls()
    assert words == ["kubectl", "create", "-f", "-"]
    found = yaml.safe_load(text)
    (container,) = pod(found)["containers"]
    variables = {one["name"]: "3" for one in container.get("env", [])}
    words = [*container["command"], *container["args"]]
    subprocess.run([expanded(word, variables) for word in words], check=True)
    ((argv, _),) = recorder.calls()
    assert argv[:2] == ["medjax", "train"]
    assert argv[-len(nasty(seed)) :] == list(nasty(seed))
    added = argv[2 : -len(nasty(seed))]
    if kind == "nodes with GPUs":
        assert "--num_processes=4" in added and "--process_id=3" in added
        assert "--coordinator_address=medjax-train-0-0.medjax:8476" in added
    else:
        alone = (
            job(found)["completions"] * found["spec"]["replicatedJobs"][0]["replicas"]
        )
        assert added == ([] if alone == 1 else ["--host_timeout=900"])


def test_node_pools_come_first_one_for_each_slice(recorder):
    flags = ("--cluster=c", "--location=us-east5", "--node_pools=us-east5-a", "--spot")
    spec_flags = ("--topology=v6e:4x4", "--slices=2", "--replace")
    assert gke.main(["--image=I", *flags, *spec_flags, "--", *PLAIN]) == 0
    calls = [words for words, _ in recorder.calls()]
    assert [words[:4] for words in calls] == [
        ["gcloud", "container", "clusters", "get-credentials"],
        ["gcloud", "container", "node-pools", "create"],
        ["gcloud", "container", "node-pools", "create"],
        ["kubectl", "delete", "jobset", "medjax"],
        ["kubectl", "create", "-f", "-"],
    ]
    for words in calls:
        assert not unknown_options(words)
    assert {"--machine-type=ct6e-standard-4t", "--max-nodes=4"} <= set(calls[1])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "either --topology"),
        (("--topology=v6e:4x5",), "did you mean 'v6e:4x4'"),
        (("--topology=v5p:1",), "v5p:2x2x1"),
        (("--topology=local",), "a TPU to rent"),
        (("--topology=v6e:1", "--gpu=nvidia-l4"), "either --topology"),
        (("--gpu=nvidia-l4", "--slices=2"), "set --nodes"),
        (("--topology=v6e:1", "--nodes=2"), "set --slices"),
        (("--topology=v6e:1", "--slices=0"), "at least 1"),
        (("--topology=v6e:1", "--mount=data"), "CLAIM:/PATH"),
        (("--topology=v6e:1", "--cluster=c"), "--location is missing"),
        (("--topology=v6e:1", "--name=A"), "small letters"),
        ((*POOLS, f"--name={'a' * 40}"), "at most 40 characters"),
        (("--topology=v6e:1", "--slice=2"), "--slice=2"),
    ],
)
def test_a_mistake_is_one_line(flags, said, recorder, capsys):
    assert gke.main(["--image=I", *flags, "--", *PLAIN]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert said in err
    assert not recorder.calls()
