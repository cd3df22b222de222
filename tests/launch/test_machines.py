"""The loop that keeps a run alive on a rented machine, against a recorded gcloud."""

import itertools
import subprocess

import pytest

from launch import gce, machines, tpu_vm
from launch.machines import HOST_SCRIPT
from tests.launch.arguments import PLAIN, nasty
from tests.launch.published import unknown_options
from tests.launch.test_launchers import MACHINES

MISSING = ("describe", "ERROR: NOT_FOUND: the resource was not found", 1)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(machines.time, "sleep", lambda seconds: None)


def state(name):
    return ("describe", f"{name}\n", 0)


def ends(code):
    return ("ssh", "" if not code else "lost", code)


def done(name, recorder, *more, training=PLAIN):
    """Run a launcher; return its exit code, and what gcloud did beside describe."""
    launcher, flags = MACHINES[name]
    code = launcher.main([*flags, *more, "--", *training])
    calls = [words for words, _ in recorder.calls()]
    assert not any(unknown_options(words) for words in calls)
    verbs = [next(w for w in words if w in VERBS) for words in calls]
    return code, [verb for verb in verbs if verb != "describe"]


VERBS = ("create", "describe", "ssh", "start", "delete")


def test_a_tpu_is_requested_again_after_a_preemption(recorder):
    recorder.reply(
        *(MISSING, state("WAITING_FOR_RESOURCES"), state("PROVISIONING")),
        *(state("ACTIVE"), ends(75), state("SUSPENDING"), state("SUSPENDED")),
        *(state("PROVISIONING"), state("ACTIVE"), ends(0)),
    )
    verbs = ["create", "ssh", "delete", "create", "ssh", "delete"]
    assert done("tpu_vm", recorder) == (0, verbs)


def test_a_machine_is_started_again_until_one_is_free(recorder):
    recorder.reply(
        *(MISSING, state("RUNNING"), ends(255), state("STOPPING")),
        *(state("TERMINATED"), ("start", "no capacity", 1), state("TERMINATED")),
        *(state("STAGING"), state("RUNNING"), ends(0)),
    )
    verbs = ["create", "ssh", "start", "start", "ssh", "delete"]
    assert done("gce", recorder) == (0, verbs)


@pytest.mark.parametrize("name", MACHINES)
def test_a_mistake_ends_the_bill(name, recorder):
    ready = "ACTIVE" if name == "tpu_vm" else "RUNNING"
    recorder.reply(state(ready), ends(2))
    assert done(name, recorder) == (2, ["ssh", "delete"])
    recorder.reply(state(ready), ends(2))
    assert done(name, recorder, "--keep") == (2, ["ssh"])


def test_failures_are_counted_and_preemptions_are_not(recorder):
    failure = (state("ACTIVE"), ends(134))
    recorder.reply(*failure * 3)
    flags = ("--max_restarts=2",)
    assert done("tpu_vm", recorder, *flags) == (134, ["ssh"] * 3 + ["delete"])
    taken = (state("ACTIVE"), ends(134), state("SUSPENDED"))
    saved = (state("ACTIVE"), ends(75))
    recorder.reply(*taken * 4, *saved * 4, state("ACTIVE"), ends(0))
    code, verbs = done("tpu_vm", recorder, *flags)
    assert code == 0 and verbs.count("ssh") == 9


def test_a_lost_connection_is_no_failure_and_never_ends_the_rent(recorder, capsys):
    cut = (state("RUNNING"), ends(255))
    recorder.reply(*cut * 15, state("RUNNING"), ends(0))
    flags = ("--max_restarts=2",)
    assert done("gce", recorder, *flags) == (0, ["ssh"] * 16 + ["delete"])
    recorder.reply(*cut * 25)
    code, verbs = done("gce", recorder, *flags)
    assert code == 2 and set(verbs) == {"ssh"}
    assert "still rented" in capsys.readouterr().err


def test_a_long_connection_that_is_lost_does_not_count(recorder, monkeypatch):
    clock = itertools.count(step=1000)
    monkeypatch.setattr(machines.time, "monotonic", lambda: next(clock))
    cut = (state("RUNNING"), ends(255))
    recorder.reply(*cut * 25, state("RUNNING"), ends(0))
    assert done("gce", recorder) == (0, ["ssh"] * 26 + ["delete"])


def test_a_tpu_that_cannot_be_made_is_not_requested_for_ever(recorder, capsys):
    recorder.reply(*[state("FAILED")] * 5)
    code, verbs = done("tpu_vm", recorder, "--max_restarts=2")
    assert (code, verbs) == (2, ["delete", "create"] * 2)
    assert "queued-resources describe" in capsys.readouterr().err


def test_gcloud_may_fail_for_some_minutes(recorder):
    silent = ("describe", "ERROR: no network", 1)
    recorder.reply(
        state("RUNNING"), ends(255), *[silent] * 9, state("RUNNING"), ends(0)
    )
    assert done("gce", recorder) == (0, ["ssh", "ssh", "delete"])


def test_an_interrupted_loop_leaves_the_run_alone(recorder, monkeypatch, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(machines.time, "sleep", interrupted)
    recorder.reply(state("RUNNING"), ends(255))
    assert done("gce", recorder) == (130, ["ssh"])
    assert "gcloud compute instances delete" in capsys.readouterr().err


def test_an_error_of_gcloud_is_not_a_machine_that_is_missing(recorder, capsys):
    recorder.reply(("describe", "ERROR: PERMISSION_DENIED", 1))
    assert done("tpu_vm", recorder) == (2, [])
    assert "PERMISSION_DENIED" in capsys.readouterr().err
    recorder.reply(MISSING, ("create", "quota", 1))
    assert done("gce", recorder) == (2, ["create"])


@pytest.mark.parametrize("name", MACHINES)
def test_the_dry_run_shows_every_command(name, recorder, capsys):
    launcher, flags = MACHINES[name]
    training = nasty(8)
    assert launcher.main([*flags, "--dry_run", "--", *training]) == 0
    script = capsys.readouterr().out
    assert not recorder.calls()
    subprocess.run(["bash"], input=script, text=True, check=True)
    shown = [words for words, _ in recorder.calls()]
    parsed = launcher.parser().parse_args(list(flags))
    on = launcher.machine(parsed, training)
    used = (on.describe, on.create, on.train, *on.revive, on.delete)
    assert shown == [list(one.words) for one in used]


def on_host(recorder, command):
    """Execute what gcloud passes to the shell of a host; return docker's calls."""
    # gcloud splits the command at spaces, and ssh joins it again.
    joined = " ".join(command.split(" "))
    code = subprocess.run(["bash", "-c", joined], check=False).returncode
    return code, [words for words, _ in recorder.calls()]


def train_command(name, training):
    launcher, flags = MACHINES[name]
    on = launcher.machine(launcher.parser().parse_args(list(flags)), training)
    return next(w for w in on.train.words if w.startswith("--command="))[10:]


@pytest.mark.parametrize("name", MACHINES)
def test_arguments_reach_the_container_unchanged(name, recorder):
    training = nasty(21)
    recorder.reply(("inspect", "no such container", 1), ("wait", "75\n", 0))
    code, calls = on_host(recorder, train_command(name, training))
    assert code == 75
    verbs = [words[1] for words in calls]
    assert verbs == ["info", "inspect", "auth", "rm", "run", "logs", "wait"]
    assert calls[2][-1] == "europe-docker.pkg.dev"
    run = next(words for words in calls if words[1] == "run")
    assert run[-len(training) :] == list(training)
    after = run[run.index("train") + 1 : -len(training)]
    assert after == (["--host_timeout=900"] if name == "tpu_vm" else [])
    assert ("--privileged" in run) == (name == "tpu_vm")
    assert ("--gpus=all" in run) == (name == "gce")


def test_a_run_that_is_there_is_followed(recorder):
    recorder.reply(("inspect", "true\n", 0), ("wait", "0\n", 0))
    code, calls = on_host(recorder, train_command("gce", PLAIN))
    assert code == 0
    assert [words[1] for words in calls] == ["info", "inspect", "logs", "wait"]


def test_a_container_that_does_not_start_is_an_error(recorder):
    recorder.reply(("inspect", "", 1), ("run", "no such image", 125))
    code, _ = on_host(recorder, train_command("gce", PLAIN))
    assert code == 1


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_end_of_docker_is_not_the_end_of_the_run(code, recorder):
    recorder.reply(("inspect", "true\n", 0), ("wait", f"{code}\n", 0))
    assert on_host(recorder, train_command("gce", PLAIN))[0] == code
    recorder.reply(("inspect", "true\n", 0), ("wait", "no docker daemon", 1))
    assert on_host(recorder, train_command("gce", PLAIN))[0] == 255


def test_a_container_has_time_to_save():
    assert "grace=300" in HOST_SCRIPT.read_text()
    assert {gce.main, tpu_vm.main} == {one.main for one, _ in MACHINES.values()}
