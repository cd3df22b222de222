"""All pipelines give the same batches, and all are measured."""

import dataclasses
import time

import numpy as np
import pytest

pytest.importorskip("torch")

from bench import input as bench_input
from bench.input_stages import stages
from bench.pipelines import make_pipelines
from medjax.errors import UserError


@pytest.fixture(scope="module", params=["png", "jpg"])
def pipelines(tmp_path_factory, request):
    """All over six computed radiographs, in threads of this process."""
    folder = tmp_path_factory.mktemp("input")
    return make_pipelines(folder, 6, 48, 32, batch=2, workers=0, kind=request.param)


def test_all_give_the_same_batches(pipelines):
    bench_input.check_equal(pipelines)


def test_pipelines_that_differ_are_refused(pipelines, monkeypatch):
    wider = dataclasses.replace(pipelines, size=40)
    monkeypatch.setattr(type(pipelines), "torch", lambda self, shuffle: wider_torch)
    wider_torch = (batch for batch in wider.medjax(shuffle=False))
    with pytest.raises(UserError, match="differ in 'images'"):
        bench_input.check_equal(pipelines)


@pytest.mark.ci
def test_all_are_timed_over_several_epochs(pipelines):
    rows = bench_input.measure(pipelines, repeats=2, seconds=0.01)
    assert [row["pipeline"] for row in rows] == ["medjax", "medjax, cached", "torch"]
    assert all(min(row["images/s"].values) > 1 for row in rows)
    for row in rows:
        assert 0 < row["waited, % (step of 0.01 s)"].median < 100


def test_waiting_is_what_is_not_computing():
    def slow(shuffle):
        while True:
            time.sleep(0.2)
            yield {"images": np.zeros(1)}

    def quick(shuffle):
        while True:
            yield {"images": np.zeros(1)}

    assert 35 < bench_input.waited(slow, 4, 1, 0.1)[0] < 70
    assert sum(bench_input.waited(quick, 4, 1, 0.1)) < 5


def test_stages_are_timed(pipelines):
    rows = stages({"one": pipelines, "other": pipelines})
    assert all(0 < row[name] < 1000 for row in rows for name in ("one", "other"))
    assert "read from the cache instead" in [row["stage"] for row in rows]
