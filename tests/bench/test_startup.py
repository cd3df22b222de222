"""Imports and first steps are processes of their own."""

import pytest

from bench import startup
from bench.networks import Settings


def test_packages_are_told_apart():
    seconds = startup.package_seconds("json")
    assert seconds["json"] > 0
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)


def test_an_import_that_fails_is_no_measurement():
    with pytest.raises(Exception, match="no_such_module"):
        startup.import_seconds("no_such_module")


@pytest.mark.release
def test_a_warm_cache_spares_compilation():
    cold, warm = startup.measure_first_step(Settings("tiny", 32))
    assert warm["first step, s"] < cold["first step, s"]
    assert cold["second step, s"] < warm["first step, s"]
