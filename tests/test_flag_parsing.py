"""Flags on a command line, and files that a config names."""

import sys

import pytest
from absl import flags

from medjax import cli
from medjax.errors import UserError
from medjax.flag_parsing import parse_flags

NAMING = """
from ml_collections import ConfigDict
def get_config(variant=""):
    return ConfigDict({"model": {"autoencoder_config": "first.py:small", "size": 1}})
"""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse arguments in a folder other than that of the config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "second.py").write_text(NAMING)
    before = set(flags.FLAGS)
    cli.define_config()
    flags.DEFINE_string("place", "here", "a folder")
    flags.DEFINE_string("caption", "", "any text")
    flags.DEFINE_integer("most", None, "", upper_bound=3)

    def parsed(*typed: str):
        monkeypatch.setattr(sys, "argv", ["program", *typed])
        parse_flags(sys.argv)
        return flags.FLAGS.config.model

    yield parsed
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
    "typed", [["--config=own/second.py"], ["--config", "own/second.py:variant"]]
)
def test_a_file_that_a_config_names_lies_beside_it(parse, typed):
    assert parse(*typed).autoencoder_config == "own/first.py:small"


def test_a_file_that_is_typed_lies_in_the_working_folder(parse):
    key = "--config.model.autoencoder_config"
    assert parse("--config=own/second.py", f"{key}=mine.py").autoencoder_config == (
        "mine.py"
    )


def test_a_packaged_name_and_overrides_of_it(parse):
    model = parse("--config=brain_ldm:demo", "--config.model.layers_per_block=3")
    assert model.autoencoder_config == "brain_vqvae:demo"
    assert model.layers_per_block == 3


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--place=", "--place= is empty. Expected a value: a folder"),
        ("--most=4", "--most=4: Expected an integer of at most 3"),
        ("--config=", "--config= is empty. Expected a config"),
        ("--debugg", "unknown flag --debugg"),
    ],
)
def test_what_is_wrong_is_named(parse, typed, message):
    with pytest.raises(UserError, match=message):
        parse("--config=own/second.py", typed)


def test_what_is_empty_by_default_may_be_empty(parse):
    assert parse("--config=own/second.py", "--caption=").size == 1
