"""Stored configs of older versions are read under today's keys."""

import pytest

from medjax.runs.config import completed, make_config, parse
from medjax.runs.migration import RENAMED, migrated
from medjax.tasks import TASKS

OLD = {
    "task": "vq_vae",
    "data": {
        "root": "",
        "phantoms": 24,
        "phantom_kind": "brain",
        "phantom_findings": ["Effusion"],
        "phantom_finding_share": 0.5,
        "seed": 3,
    },
}
PHANTOMS = {
    "count": 24,
    "kind": "brain",
    "findings": ["Effusion"],
    "finding_share": 0.5,
}


def test_old_keys_get_their_new_names():
    assert migrated(OLD) == {
        "task": "vq_vae",
        "data": {"root": "", "seed": 3, "phantoms": PHANTOMS},
    }
    assert OLD["data"]["phantoms"] == 24


@pytest.mark.parametrize(
    ("old", "new"), [(True, "full"), (False, "none"), ("attention", "attention")]
)
def test_old_values_get_their_new_names(old, new):
    stored = {"task": "controlnet", "model": {"remat": old}}
    assert migrated(stored)["model"] == {"remat": new}
    assert completed(stored)["model"]["remat"] == new


def test_a_run_on_other_data_had_no_phantoms():
    stored = {**OLD, "data": {**OLD["data"], "root": "DATA"}}
    assert migrated(stored)["data"]["phantoms"] is None
    assert completed(stored)["data"]["phantoms"] is None


def test_some_old_keys_are_completed_by_defaults():
    stored = {"task": "vq_vae", "data": {"phantoms": 24}}
    phantoms = completed(stored)["data"]["phantoms"]
    assert phantoms["count"] == 24 and phantoms["kind"] == "chest"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("configs/brain_vqvae.py:demo", "brain_vqvae:demo"),
        ("configs/phantom_vae.py", "phantom_vae"),
        ("configs/mine.py:a", "configs/mine.py:a"),
        ("brain_vqvae:demo", "brain_vqvae:demo"),
        (None, None),
    ],
)
def test_a_packaged_first_stage_has_its_name(old, new):
    stored = {"task": "unconditional", "model": {"autoencoder_config": old}}
    assert migrated(stored)["model"] == {"autoencoder_config": new}


@pytest.mark.parametrize("task", TASKS)
def test_todays_configs_stay_as_they_are(task):
    config = make_config(task).to_dict()
    assert migrated(config) == config
    assert migrated(migrated(OLD)) == migrated(OLD)


def test_a_config_without_sections_stays_as_it_is():
    assert migrated({"task": "none"}) == {"task": "none"}


@pytest.mark.parametrize("key", RENAMED.values())
def test_every_new_key_is_one_of_todays(key):
    node = parse(make_config("vq_vae"))
    for name in key.split("."):
        node = vars(node)[name]
