"""What may differ when a run goes on, and what may not."""

import copy
import fnmatch
import json
import logging

import pytest

from medjax.errors import UserError
from medjax.runs.config import completed, make_config
from medjax.runs.same_run import MAY_DIFFER, check_same_run, differences
from medjax.tasks import TASKS

SAVED = {
    "config": {
        "optim": {"b1": 0.9},
        "train": {"steps": 3},
        "mesh": {"data": 8},
        "model": {"controlnet": None},
    },
    "inputs": {
        "base": {"source": "some/base", "fingerprint": "aaaa"},
        "dataset": {"source": "/data", "fingerprint": "cccc"},
    },
}


def changed(*path_and_value):
    *path, last, value = path_and_value
    about = copy.deepcopy(SAVED)
    inner = about
    for name in path:
        inner = inner[name]
    inner[last] = value
    return about


def test_the_same_run_goes_on_in_silence(caplog):
    check_same_run("checkpoint 3", SAVED, SAVED)
    assert not caplog.records


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (changed("inputs", "base", "fingerprint", "bbbb"), r"base is .*bbbb.*aaaa"),
        (changed("inputs", "dataset", "fingerprint", "d"), r"dataset is .*d.*cccc"),
        (changed("config", "optim", "b1", 0.8), r"config.optim.b1 is 0.8, was 0.9"),
        (changed("config", "optim", "b3", 1), r"config.optim.b3 is 1, was None"),
    ],
)
def test_what_decides_the_result_must_stay(own, told):
    with pytest.raises(UserError, match=told) as error:
        check_same_run("checkpoint 3", SAVED, own)
    assert "checkpoint 3 belongs to another run" in str(error.value)
    assert "train.steps" in str(error.value)


def test_an_input_known_by_the_former_fingerprint_is_the_same():
    own = changed("inputs", "base", "fingerprint", "full-bbbb")
    own["inputs"]["base"]["sparse_fingerprint"] = "aaaa"
    check_same_run("checkpoint 3", SAVED, own)
    own["inputs"]["base"]["sparse_fingerprint"] = "dddd"
    with pytest.raises(UserError, match=r"base is .*full-bbbb.*aaaa"):
        check_same_run("checkpoint 3", SAVED, own)


def test_keys_newer_than_the_checkpoint_are_at_their_defaults():
    now = json.loads(json.dumps(make_config("autoencoder_kl").to_dict()))
    then = copy.deepcopy(now)
    del then["best"], then["data"]["folds"]
    del then["optim"]["text_encoder"]["schedule"]
    # A section that the task does not have is kept as None.
    then["diffusion"] = None
    inputs = SAVED["inputs"]
    assert completed(then) == now | {"diffusion": None}
    check_same_run(
        "checkpoint 3",
        {"config": then, "inputs": inputs},
        {"config": now | {"diffusion": None}, "inputs": inputs},
    )
    now["data"]["folds"] = 2
    with pytest.raises(UserError, match="config.data.folds is 2, was 0"):
        check_same_run(
            "checkpoint 3",
            {"config": then, "inputs": inputs},
            {"config": now, "inputs": inputs},
        )


@pytest.mark.parametrize(
    "own",
    [
        changed("config", "train", "steps", 9),
        changed("config", "mesh", "data", 4),
        changed("config", "model", "controlnet", "/a/copy"),
        changed("inputs", "base", "source", "/a/copy"),
    ],
)
def test_length_mesh_and_places_may_differ(own, caplog):
    with caplog.at_level(logging.WARNING, logger="medjax"):
        check_same_run("checkpoint 3", SAVED, own)
    ours = [r for r in caplog.records if r.name.startswith("medjax")]
    assert len(ours) == (own["config"] != SAVED["config"])


def test_every_pattern_is_of_a_key_that_there_is():
    configs = [make_config(task) for task in TASKS]
    keys = {
        f"{name}.{key}"
        for config in configs
        for name, section in config.items()
        if name != "task"
        for key in section
    }
    for pattern in MAY_DIFFER:
        assert fnmatch.filter(keys, pattern), pattern


def test_differences_are_named_by_path():
    old = {"a": {"b": 1, "c": [1]}, "d": 2}
    new = {"a": {"b": 1, "c": [2]}, "e": 2}
    assert differences(old, new) == [
        ("a.c", [1], [2]),
        ("d", 2, None),
        ("e", None, 2),
    ]
