"""The written installs on TPUs and GPUs: pip must be able to resolve them.

jax[tpu] requires the libtpu that it was released with. On machines without a TPU,
`medjax preflight` compiles with a newer one. Therefore constraints.txt has neither.
"""

import importlib.metadata
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launch import skypilot
from medjax.compiling import topologies
from tests.pages import DOCS, REPOSITORY

CONSTRAINTS = (REPOSITORY / "constraints.txt").read_text()
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
PLACES = {
    path.name: path.read_text()
    for path in (
        *(REPOSITORY / "launch" / "Dockerfile", REPOSITORY / "README.md"),
        *(REPOSITORY / "launch" / "skypilot.py", DOCS / "how_to" / "cloud.md"),
        DOCS / "install.md",
    )
}


def pins(text):
    lines = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def conflicts(extra, constraints):
    """Return what an extra of jax requires and constraints forbid."""
    required = map(Requirement, importlib.metadata.requires("jax"))
    pinned = pins(constraints)
    return [
        str(one)
        for one in required
        if one.marker is None or one.marker.evaluate({"extra": extra})
        if (version := pinned.get(canonicalize_name(one.name)))
        if not one.specifier.contains(version)
    ]


def jax_extras(extra):
    return [one for text in EXTRAS[extra] for one in Requirement(text).extras]


@pytest.mark.parametrize("extra", ["tpu", "cuda"])
def test_the_constraints_allow_what_jax_requires(extra):
    assert importlib.metadata.version("jax") == pins(CONSTRAINTS)["jax"]
    for one in jax_extras(extra):
        assert conflicts(one, CONSTRAINTS) == []


def test_a_libtpu_that_jax_does_not_allow_is_found():
    (compiler,) = EXTRAS["preflight"]
    pin = compiler.partition(";")[0]
    assert any("libtpu" in one for one in conflicts("tpu", f"{CONSTRAINTS}{pin}\n"))


def written_extras(text):
    return [
        {one for one in found.split(",") if one}
        for found in re.findall(r"(?<=\.)\[([\w,-]+?)(?:\$EXTRAS)?\]", text)
    ]


def test_no_written_install_has_two_versions_of_libtpu():
    places = {name: written_extras(text) for name, text in PLACES.items()}
    found = [extras for all_ in places.values() for extras in all_]
    assert all(one <= EXTRAS.keys() for one in found)
    assert not [one for one in found if {"tpu", "preflight"} <= one]
    for name in ("Dockerfile", "install.md", "README.md"):
        assert {"tpu"} in places[name], name
    assert "{target}" in skypilot._SETUP and "constraints.txt" in skypilot._SETUP


def test_one_version_of_the_compiler_is_named_everywhere(monkeypatch):
    (compiler,) = EXTRAS["preflight"]
    pin = compiler.partition(";")[0]

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(topologies.importlib.metadata, "distribution", missing)
    with pytest.raises(topologies.UserError, match=f"pip install --no-deps {pin} "):
        topologies._libtpu()
    assert pin in (DOCS / "how_to" / "preflight.md").read_text()
