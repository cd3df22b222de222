"""Every kind of damage to a checkpoint is seen, and the one before it is used."""

import errno
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UserError
from medjax.runs import checksums
from medjax.runs.checkpoints import Checkpoints
from medjax.runs.checksums import CHECKSUMS, damage, write_checksums

INPUTS = {"base": {"source": "s", "fingerprint": "f"}}


def state(step: int) -> dict:
    return {"a": jnp.arange(4096.0) * step, "b": {"kernel": jnp.full((8, 8), step)}}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder, {}, INPUTS) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"val/loss": 1.0 / step})
    return folder


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("harm", [cut, flip_a_bit, empty, None])
def test_damage_to_any_file_is_seen(two_steps, harm):
    folder = two_steps / "2"
    listed = json.loads((folder / CHECKSUMS).read_text())
    assert any((folder / name).stat().st_size > 10_000 for name in listed)
    assert any(name.startswith("metrics/") for name in listed)
    for path in [folder / CHECKSUMS, *(folder / name for name in listed)]:
        content = path.read_bytes()
        if harm is None:
            path.unlink()
        else:
            path.write_bytes(harm(content))
        untouched = path.exists() and path.read_bytes() == content
        assert (damage(folder) is None) == untouched, path
        path.write_bytes(content)
    assert damage(folder) is None


def test_the_newest_is_named_and_the_one_before_it_used(two_steps, tmp_path, caplog):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    largest = max((tmp_path / "2").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(flip_a_bit(largest.read_bytes()))
    with Checkpoints(tmp_path, {}, INPUTS) as checkpoints:
        assert checkpoints.latest_step == 1
        np.testing.assert_array_equal(checkpoints.restore(state(0))["a"], state(1)["a"])
        # Its step can be saved again, and is then the newest.
        assert checkpoints.save(2, state(2), {"val/loss": 0.5})
    assert "2 is damaged" in caplog.text and "2.damaged" in caplog.text
    with Checkpoints(tmp_path, {}, INPUTS) as checkpoints:
        assert checkpoints.latest_step == 2
    assert (tmp_path / "2.damaged").is_dir()


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    for step in ("1", "2"):
        (tmp_path / step / CHECKSUMS).unlink()
    # Nor when asked again.
    for _ in range(2):
        with pytest.raises(UserError, match=r"all checkpoints .* damaged \(2: .*; 1: "):
            Checkpoints(tmp_path, {}, INPUTS)


@pytest.mark.parametrize("harm", [cut, empty])
def test_an_older_checkpoint_that_is_damaged_is_set_aside(two_steps, tmp_path, harm):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    metrics = tmp_path / "1" / "metrics" / "metrics"
    metrics.write_bytes(harm(metrics.read_bytes()))
    with Checkpoints(tmp_path, {}, INPUTS) as checkpoints:
        assert checkpoints.latest_step == 2
    assert (tmp_path / "1.damaged").is_dir()


def test_a_disk_that_cannot_be_read_is_damage(two_steps, monkeypatch):
    def fail(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))

    monkeypatch.setattr(checksums, "_digest", fail)
    assert "cannot be read: Input/output error" in damage(two_steps / "2")


def test_large_files_of_older_checkpoints_must_only_be_there(two_steps, monkeypatch):
    folder = two_steps / "2"
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    size, content = largest.stat().st_size, largest.read_bytes()
    largest.write_bytes(flip_a_bit(content))
    assert damage(folder, size - 1) is None
    assert f"{largest.name} does not match its checksum" in damage(folder, size)
    largest.unlink()
    assert f"{largest.name} is missing" in damage(folder, 0)
    largest.write_bytes(content)


def test_a_damaged_list_of_checksums_is_damage(tmp_path):
    (tmp_path / "a").write_text("a")
    write_checksums(tmp_path)
    assert damage(tmp_path) is None
    for text in ("", "[1]", '{"a"', "3"):
        (tmp_path / CHECKSUMS).write_text(text)
        assert "cannot be read" in damage(tmp_path)
    (tmp_path / CHECKSUMS).write_text("{}")
    assert "lists no file" in damage(tmp_path)
