"""Several hosts train the same run, end together, and never wait forever."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from medjax import distributed, meshes, trees
from medjax.cli import STOPPED_EXIT_CODE
from medjax.errors import UserError
from medjax.hosts import Hosts
from tests import hosts, in_process
from tests.cached import cached_examples_of
from tests.training.test_two_stages import FIRST

# One process trains on as many devices as two hosts with one device each.
pytestmark = pytest.mark.devices(2)

ADDRESS = "127.0.0.1:1234"
STEPS = 8
TINY = {
    "data.image_size": 16,
    "data.batch_size": 8,
    "data.phantoms.count": 16,
    # Adam divides by the size of the gradient. With a small ε, rounding errors of
    # gradients that should be 0 become full updates.
    "optim.eps": 1e-3,
    "optim.warmup_fraction": 0.0,
    "eval.every": 100,
    "eval.sample_every": 100,
    "eval.examples": 3,
    "eval.samples": 2,
    "eval.sampler_steps": 2,
    "train.steps": STEPS,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((ADDRESS, None, None), "--num_processes and --process_id missing"),
        ((None, 2, 1), "--coordinator_address missing"),
        ((ADDRESS, 2, None), "--process_id missing"),
        ((ADDRESS, 2, 2), "--process_id=2 of --num_processes=2: expected 0 to 1"),
        (("localhost", 2, 0), "--coordinator_address=localhost: expected HOST:PORT"),
    ],
)
def test_half_an_answer_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        Hosts(*given)


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        (SLURM, ["slurm"]),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, []),
    ],
    ids=["nothing", "several tasks", "one task"],
)
def test_slurm_is_asked_where_there_are_several(monkeypatch, environment, expected):
    asked = []
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda **options: asked.append(options["cluster_detection_method"]),
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    service = jax.config.jax_enable_preemption_service
    try:
        with distributed.joined(Hosts()):
            assert asked == expected
        with distributed.joined(Hosts(detect=False)):
            assert asked == expected
    finally:
        jax.config.update("jax_enable_preemption_service", service)


def test_alone_one_hears_at_once_and_differs_from_nobody():
    votes = distributed.Agreement()
    assert [votes.largest(n) for n in (0, 2, 1)] == [0, 2, 1]
    distributed.check_same("anything", {"a": 1})
    mesh = meshes.make_mesh(meshes.MeshConfig())
    assert meshes.host_rows(8, mesh) == list(range(8))


def act(name, more=(), **options):
    """Run a function of `tests/one_host.py` on two hosts."""
    command = ["-m", "tests.one_host", f"--act={name}", *more]
    processes = hosts.start(command, **options)
    return hosts.finish(processes, 100)


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error:")]


def test_all_hear_of_a_vote_at_the_same_call():
    done = act("agree")
    assert [code for code, _, _ in done] == [0, 0], done
    assert [json.loads(out.splitlines()[-1]) for _, out, _ in done] == [
        [0, 0, 0, 1, 2, 0]
    ] * 2


@pytest.mark.ci
def test_tasks_of_slurm_meet_without_being_told():
    arguments = ["-m", "tests.one_host", "--act=agree", "--host_timeout=60"]
    # jax computes the port from the number of the job.
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "127.0.0.1"}
    tasks = [
        hosts.start_one(
            arguments, SLURM | job | {"SLURM_PROCID": task, "SLURM_LOCALID": task}
        )
        for task in ("0", "1")
    ]
    for code, out, err in hosts.finish(tasks, 100):
        assert code == 0, err
        assert "waiting for the processes of slurm" in err
        assert json.loads(out.splitlines()[-1]) == [0, 0, 0, 1, 2, 0]


@pytest.mark.ci
def test_each_host_reads_the_rows_of_its_devices():
    done = act("place")
    assert [code for code, _, _ in done] == [0, 0], done
    first, second = (json.loads(out.splitlines()[-1]) for _, out, _ in done)
    everything = list(range(16))
    for name in ("by host", "in turns", "fsdp within"):
        assert sorted(first[name] + second[name]) == everything
        assert len(first[name]) == 8
    assert first["by host"] == everything[:8]
    assert first["in turns"] == [row for row in everything if row % 4 < 2]
    for name in ("tensor across", "tensor over all"):
        assert first[name] == second[name] == everything


@pytest.mark.release
def test_hosts_cache_latents_and_captions_together(tmp_path):
    done = act("cache", more=[f"--folder={tmp_path / 'two'}"], devices=2)
    assert [code for code, _, _ in done] == [0, 0], done
    alone = cached_examples_of("cxr_text_to_image", tmp_path / "one")
    # Computed already, so these only read what the hosts wrote.
    both = cached_examples_of("cxr_text_to_image", tmp_path / "two")
    assert not list(tmp_path.glob("two/*/*.incomplete"))
    for one, two in ((alone.rows, both.rows), (alone.source.rows, both.source.rows)):
        assert one.folder.name == two.folder.name
        assert one.records == two.records
        for row in range(len(one.records)):
            for name, array in one.arrays(row).items():
                expected = two.arrays(row)[name]
                np.testing.assert_allclose(array, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.release
def test_hosts_stop_together_while_they_cache_images(tmp_path):
    done = act("stop_while_caching", more=[f"--folder={tmp_path}"], devices=2)
    assert [code for code, _, _ in done] == [STOPPED_EXIT_CODE] * 2, done
    # The first one finished its cache.
    assert len(list(tmp_path.glob("images-0/*"))) >= 1
    assert not (tmp_path / "run").exists()


@pytest.mark.ci
def test_hosts_that_would_train_something_else_are_named():
    for code, _, err in act("differ"):
        assert code == 2
        (line,) = errors(err)
        assert "dataset is 'abc1' on host 1 and 'abc0' on host 0" in line
        assert "second" in line


@pytest.mark.ci
def test_a_mistake_on_one_host_ends_the_others_with_its_words():
    begin = time.monotonic()
    (first, _, told), (second, _, own) = act("fail")
    assert time.monotonic() - begin < 60
    assert (first, second) == (distributed.LOST_EXIT_CODE, 2)
    assert errors(own) == ["error: the second host's own"]
    (line,) = errors(told)
    assert "host 1 failed: the second host's own" in line


@pytest.mark.release
def test_a_mistake_of_all_is_everyones_own():
    for code, _, err in act("fail_alike"):
        assert code == 2
        assert errors(err) == ["error: a mistake of both"]


def assert_lost(code, err):
    """Check how a host ended after the other one died: by jax, or by gloo if first.

    CPUs of several hosts communicate through gloo. Sometimes (1 in 18 here) it aborts
    the process, because it takes the rest of the broken step for a mismatch.
    """
    assert code != 0
    assert re.search("another task died|gloo::|Gloo .* failed", err), err


@pytest.mark.ci
def test_a_host_that_dies_ends_the_others():
    begin = time.monotonic()
    (survivor, _, err), (killed, _, _) = act("die", timeout=5)
    assert time.monotonic() - begin < 60
    assert killed == -signal.SIGKILL
    assert_lost(survivor, err)


@pytest.mark.release
def test_a_host_that_never_comes_is_an_error_in_time():
    begin = time.monotonic()
    address = hosts.free_address()
    flags = [f"--coordinator_address={address}", "--num_processes=2", "--process_id=0"]
    arguments = ["-m", "tests.one_host", "--act=agree", "--host_timeout=3", *flags]
    ((code, _, err),) = hosts.finish([hosts.start_one(arguments)], 100)
    assert time.monotonic() - begin < 60
    assert code != 0
    assert f"waiting for 2 processes at {address}, at most 3 s" in err


@pytest.mark.ci
def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = [f"--coordinator_address={address}", "--num_processes=2"]
        flags += ["--process_id=0", "--host_timeout=5"]
        one = hosts.start_one(["-m", "tests.one_host", "--act=agree", *flags])
        ((code, _, err),) = hosts.finish([one], 100)
    assert code == 2
    (line,) = errors(err)
    assert f"{address}: cannot listen on this port" in line


def command(workdir, **changes):
    """Return ``-m medjax.train …`` of a tiny run of the demo."""
    flags = [f"--config.{name}={value}" for name, value in (TINY | changes).items()]
    config = "--config=tests/tiny_demo.py"
    return ["-m", "medjax.train", config, f"--workdir={workdir}", *flags]


def result(workdir):
    """Return the losses, and the state after the last step."""
    with (workdir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows]
    losses.append(float(rows[-1]["val/loss"]))
    with ocp.StandardCheckpointer() as checkpointer:
        folder = workdir / "checkpoints" / rows[-1]["step"] / "state"
        shapes = checkpointer.metadata(folder).item_metadata.tree
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes
        )
        state = checkpointer.restore(folder, like)
    # Only tasks with statistics store them.
    trees_of_state = ("params", "ema_params", "statistics")
    learned = {name: state[name] for name in trees_of_state if name in state}
    return losses, trees.flatten(learned)


def assert_close(first, second, tolerance):
    np.testing.assert_allclose(first[0], second[0], rtol=tolerance)
    assert first[1].keys() == second[1].keys()
    for path, leaf in first[1].items():
        np.testing.assert_allclose(
            leaf, second[1][path], rtol=tolerance, atol=tolerance, err_msg=path
        )


SMALL = (
    "--config=tests/tiny_unconditional.py",
    f"--config.optim.eps={TINY['optim.eps']}",
)


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """A small run on two hosts with a device each: its folder, and what both said."""
    workdir = tmp_path_factory.mktemp("two_hosts")
    arguments = ["-m", "medjax.train", *SMALL, f"--workdir={workdir}"]
    done = hosts.finish(hosts.start(arguments, devices=1))
    assert [code for code, _, _ in done] == [0, 0], done
    return workdir, [err for _, _, err in done]


@pytest.mark.ci
def test_two_hosts_of_one_device_are_one_of_two(two_hosts, tmp_path):
    done = in_process.medjax("train", *SMALL, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "on 2 × cpu" in done.stderr
    losses, learned = ours = result(two_hosts[0])
    assert len(losses) == 3 + 1
    assert any(path.startswith("statistics/batch_stats/") for path in learned)
    assert_close(result(tmp_path), ours, 1e-5)


@pytest.mark.ci
def test_the_first_host_alone_speaks_and_writes(two_hosts):
    workdir, (first, second) = two_hosts
    assert "step 3/3 · loss " in first
    assert second.splitlines()[1:] == []
    assert [path.name for path in (workdir / "samples").iterdir()] == ["0000003.png"]
    assert len(list((workdir / "tensorboard").iterdir())) == 1


@pytest.fixture(scope="module")
def two_of_four(tmp_path_factory):
    """The folder of a run of a ControlNet on two hosts with four devices each."""
    workdir = tmp_path_factory.mktemp("two_of_four")
    done = hosts.finish(hosts.start(command(workdir)))
    assert [code for code, _, _ in done] == [0, 0], done
    return workdir


@pytest.mark.release
def test_two_hosts_of_four_devices_are_one_of_eight_and_one_of_one(
    two_of_four, tmp_path
):
    ours = result(two_of_four)
    assert len(ours[0]) == STEPS + 1
    for devices in (8, 1):
        workdir = tmp_path / str(devices)
        ((code, _, err),) = hosts.finish(
            [hosts.start_one(command(workdir), devices=devices)]
        )
        assert code == 0, err
        assert_close(result(workdir), ours, 1e-5)


def wait_for(path, processes):
    while not path.exists():
        assert all(process.poll() is None for process in processes), "ended too early"
        time.sleep(0.02)


@pytest.mark.release
def test_hosts_that_are_killed_or_stopped_go_on_as_if_nothing_was(
    two_of_four, tmp_path
):
    """The second host is killed. Then both are started, and the second is stopped."""
    running = hosts.start(command(tmp_path), timeout=10)
    wait_for(tmp_path / "checkpoints" / "2", running)
    running[1].kill()
    (survivor, _, err), (killed, _, _) = hosts.finish(running, 60)
    assert killed == -signal.SIGKILL
    assert_lost(survivor, err)

    running = hosts.start(command(tmp_path))
    wait_for(tmp_path / "checkpoints" / "4", running)
    running[1].send_signal(signal.SIGTERM)
    done = hosts.finish(running)
    assert [code for code, _, _ in done] == [STOPPED_EXIT_CODE] * 2, done
    assert "another host was asked to stop at step" in done[0][2]
    assert "stopped: SIGTERM at step" in done[1][2]

    # One host with eight devices continues with the same batches.
    alone = tmp_path.with_name("alone")
    shutil.copytree(tmp_path, alone)
    ((code, _, err),) = hosts.finish([hosts.start_one(command(alone), devices=8)])
    assert code == 0, err
    assert "resuming after step" in err
    assert_close(result(alone), result(two_of_four), 1e-5)

    done = hosts.finish(hosts.start(command(tmp_path)))
    assert [code for code, _, _ in done] == [0, 0], done
    assert_close(result(tmp_path), result(two_of_four), 0)


@pytest.mark.release
def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    running = hosts.start(command(tmp_path / "{host}"))
    for code, _, err in hosts.finish(running):
        assert code == 2
        (line,) = errors(err)
        assert "do not have the same --workdir" in line


@pytest.mark.release
def test_hosts_train_an_autoencoder_and_then_upon_it(tmp_path):
    (tmp_path / "first.py").write_text(FIRST)
    small = {
        "data.image_size": 16,
        "data.batch_size": 8,
        "data.phantoms.count": 24,
        "model.autoencoder_config": tmp_path / "first.py",
        "model.block_out_channels": (8, 16),
        "model.attention_head_dim": 4,
        "model.norm_num_groups": 4,
        "model.layers_per_block": 1,
        "train.steps": 2,
        "eval.examples": 4,
        "eval.samples": 2,
        "eval.sampler_steps": 2,
    }
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    config, workdir = "--config=configs/brain_ldm.py:demo", tmp_path / "run"
    arguments = ["-m", "medjax.train", config, f"--workdir={workdir}", *flags]
    for code, _, err in hosts.finish(hosts.start(arguments)):
        assert code == 0, err
    for stage in (workdir / "autoencoder", workdir):
        assert (stage / "checkpoints" / "2").is_dir()
