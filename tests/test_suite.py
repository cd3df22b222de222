"""Helpers of the tests: shards, the compile cache and the memory limit."""

import importlib.util
import os
import time
from pathlib import Path

import jax
import pytest

from medjax import export
from tests import compile_cache, in_process, memory, sharding


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_shards_are_a_partition_of_about_equal_parts(count):
    weights = {f"test_{n}.py": 1 + n * n % 17 for n in range(25)}
    shards = sharding.divide(weights, count)
    assert shards.keys() == weights.keys()
    assert set(shards.values()) == set(range(1, min(count, 25) + 1))
    loads = [
        sum(weights[name] for name, shard in shards.items() if shard == number)
        for number in range(1, count + 1)
    ]
    assert max(loads) <= sum(weights.values()) / count + max(weights.values())


def test_shards_do_not_depend_on_the_order():
    weights = {f"test_{n}.py": n % 3 for n in range(9)}
    assert sharding.divide(weights, 4) == sharding.divide(
        dict(reversed(weights.items())), 4
    )


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b"])
def test_a_shard_that_is_not_one_of_n_is_refused(text):
    with pytest.raises(ValueError):
        sharding.parse(text)


def test_programs_are_kept_outside_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compile_cache.folder()
    assert folder.parent == tmp_path / "medjax" / "tests"
    assert folder.name.startswith(f"{jax.__version__}-")


def test_programs_that_no_test_uses_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compile_cache.folder()
    folder.mkdir(parents=True)
    for name in ("old-cache", "new-cache", "old-other"):
        (folder / name).touch()
        age = 20 if name.startswith("old") else 1
        os.utime(folder / name, (time.time() - 86400 * age,) * 2)
    compile_cache.remove_unused(days=14)
    assert sorted(path.name for path in folder.iterdir()) == ["new-cache", "old-other"]


def test_a_command_in_process_leaves_no_code_that_the_hook_changed():
    stored = Path(importlib.util.cache_from_source(export.__file__))
    stored.unlink(missing_ok=True)
    assert in_process.medjax("export", "--help").returncode == 0
    # Another process may have stored the module's own.
    assert not stored.exists() or b"_import_hook" not in stored.read_bytes()


def test_a_process_over_the_limit_is_named():
    peak = memory.PeakMemory(limit=3.0)
    peak.peaks = {"gw0": 3.1e9, "gw1": 2.9e9}
    assert peak.over() == ["gw0"]
    assert memory.PeakMemory(limit=None).over() == []


def test_there_is_one_device_unless_a_module_asks_for_more():
    assert jax.device_count() == 1
