"""What launchers share: a dry run shows the launch, and words arrive unchanged."""

import subprocess
from pathlib import Path

import pytest
import yaml

from launch import gce, gke, skypilot, slurm, tpu_vm
from tests.launch.arguments import PLAIN, nasty
from tests.launch.published import SKYPILOT, unknown_options

IMAGE = "--image=europe-docker.pkg.dev/project/folder/medjax:tpu"
# A launcher and its flags.
LAUNCHES = {
    "gke": (gke, (IMAGE, "--topology=v6e:4x4", "--slices=2", "--cluster=c")),
    "gke with GPUs": (gke, (IMAGE, "--gpu=nvidia-l4", "--nodes=2", "--replace")),
    "skypilot": (skypilot, ("--gpus=A100-80GB:8", "--spot", "--secret=WANDB_API_KEY")),
    "skypilot, nodes": (skypilot, ("--gpus=L4:1", "--nodes=2", "--infra=gcp/us-east5")),
    "skypilot, a TPU": (skypilot, ("--topology=v6e:2x4", "--disk_gb=100")),
    "slurm": (slurm, ("--nodes=2", "--gpus=4", "--partition=p", "--sbatch=--qos=q")),
}
MACHINES = {
    "tpu_vm": (tpu_vm, (IMAGE, "--zone=z", "--topology=v6e:4x4", "--spot")),
    "gce": (gce, (IMAGE, "--zone=z", "--machine_type=g2-standard-8", "--spot")),
}


def words_of(name, training, *more):
    launcher, flags = (LAUNCHES | MACHINES)[name]
    location = ("--location=us-east5",) if name == "gke" else ()
    return launcher.main([*flags, *location, *more, "--", *training])


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_dry_run_is_a_script_that_does_the_same(
    name, recorder, capsys, tmp_path, monkeypatch
):
    training = nasty(len(name))
    assert words_of(name, training) == 0
    launched = recorder.calls()
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.yaml")}
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert words_of(name, training, "--dry_run") == 0
    assert not recorder.calls() and not list(empty.iterdir())
    script = capsys.readouterr().out
    subprocess.run(["bash", "-e"], input=script, text=True, check=True)
    assert recorder.calls() == launched
    assert {path.name: path.read_bytes() for path in empty.iterdir()} == files


@pytest.mark.parametrize("name", LAUNCHES)
def test_all_options_are_published(name, recorder):
    assert words_of(name, PLAIN) == 0
    for words, _ in recorder.calls():
        if words[0] == "sbatch":
            words = words[: words.index(str(slurm.SCRIPT))]
        assert not unknown_options(words), words


def test_an_option_that_is_not_published_is_found():
    assert unknown_options(["sky", "jobs", "launch", "--detach"]) == ["--detach"]
    assert unknown_options(["gcloud", "compute", "start"])


@pytest.mark.parametrize("name", [one for one in LAUNCHES if one.startswith("sky")])
def test_the_task_of_skypilot_is_valid(name, recorder, tmp_path):
    assert words_of(name, PLAIN) == 0
    (file,) = tmp_path.glob("*.yaml")
    task = yaml.safe_load(file.read_text())
    SKYPILOT.validate(task)
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert not SKYPILOT.is_valid(task | {"nodes": 2})


@pytest.mark.parametrize("name", [one for one in LAUNCHES if one.startswith("sky")])
def test_the_task_of_skypilot_runs(name, recorder, tmp_path, monkeypatch):
    assert words_of(name, nasty(5)) == 0
    task = yaml.safe_load(Path("medjax.sky.yaml").read_text())
    recorder.calls()
    monkeypatch.setenv("HOME", str(tmp_path))
    python = tmp_path / "medjax-venv" / "bin"
    python.mkdir(parents=True)
    (python / "medjax").symlink_to(recorder.programs / "medjax")
    monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.4\n10.0.0.5")
    monkeypatch.setenv("SKYPILOT_NUM_NODES", "2")
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "1")
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-c", script], cwd=task["workdir"], check=True)
    *setup, (argv, _) = recorder.calls()
    installed = setup[-1][0]
    assert installed[:3] == ["uv", "pip", "install"]
    assert installed[-3:-1] == ["-c", "constraints.txt"]
    assert installed[-1] == (".[tpu]" if "TPU" in name else ".[cuda]")
    assert argv[-len(nasty(5)) :] == list(nasty(5))
    added = argv[2 : -len(nasty(5))]
    assert ("--coordinator_address=10.0.0.4:8476" in added) == ("nodes" in name)
    assert ("--process_id=1" in added) == ("nodes" in name)


@pytest.mark.parametrize(
    ("code", "state"),
    [
        *((0, "RUNNING"), (1, "RUNNING"), (2, "RUNNING"), (75, "RUNNING")),
        *((75, "COMPLETING"), (75, "CANCELLED"), (75, "")),
    ],
)
def test_a_job_of_slurm_returns_to_the_queue_only_after_it_stopped(
    code, state, recorder, monkeypatch
):
    training = nasty(code)
    assert words_of("slurm", training) == 0
    ((submitted, _),) = recorder.calls()
    script = submitted[submitted.index(str(slurm.SCRIPT)) :]
    assert script[1:] == list(training)
    recorder.reply(("medjax.train", "", code), ("--noheader", f"{state}\n", 0))
    python = recorder.make("a python", (recorder.programs / "medjax").read_text())
    monkeypatch.setenv("PYTHON", str(python))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert subprocess.run(["bash", *script], check=False).returncode == code
    (argv, _), *rest = recorder.calls()
    assert argv == ["a python", "-m", "medjax.train", *training]
    again = code == 75 and state in ("RUNNING", "")
    requeued = [words for words, _ in rest if words[0] != "squeue"]
    assert requeued == ([["scontrol", "requeue", "7"]] if again else [])


def test_the_dry_run_of_slurm_shows_the_script(capsys):
    assert words_of("slurm", PLAIN, "--dry_run") == 0
    out = capsys.readouterr().out.splitlines()
    for line in slurm.SCRIPT.read_text().splitlines():
        assert f"# {line}".rstrip() in out


def test_a_launch_that_is_interrupted_shows_no_traceback(monkeypatch, capsys):
    def interrupted(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    assert words_of("slurm", PLAIN) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("name", LAUNCHES | MACHINES)
def test_what_training_needs_is_asked_for(name, recorder, capsys):
    for missing in ("--config", "--workdir"):
        rest = [one for one in PLAIN if not one.startswith(missing)]
        assert words_of(name, rest) == 2
        assert f"error: {missing} is missing" in capsys.readouterr().err
    assert not recorder.calls()


def test_a_program_that_is_missing_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert words_of("slurm", PLAIN) == 2
    assert "sbatch is not installed" in capsys.readouterr().err


def test_a_large_slice_is_not_for_skypilot(capsys):
    flags = ["--topology=v6e:4x4", "--dry_run", "--", *PLAIN]
    assert skypilot.main(flags) == 2
    assert "launch.gke" in capsys.readouterr().err
