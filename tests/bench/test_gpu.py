"""A GPU is measured within its minutes, and the page says what was left out."""

import json
import time

import pytest

from bench import gpu, gpu_cases, report, turns
from bench.gpu_cases import Case, Limits
from bench.networks import Settings
from bench.report import Machine
from bench.turns import Contest, Result, compete
from bench.workers import OutOfMemory, OutOfTime, Turn
from medjax.errors import UserError
from tests.bench import fake_competitors as fakes

GPU = Machine("h200", True, {"accelerator": "NVIDIA H200"})


def _run(tmp_path, monkeypatch, flags=""):
    """Run the command at its tiny size, and return its JSON file."""
    flags = f"--network=tiny {flags} --out={tmp_path}"
    monkeypatch.setattr("sys.argv", ["gpu", *flags.split()])
    report.run(gpu.main)
    (page,) = tmp_path.glob("gpu-tiny-*.md")
    return page.read_text(), json.loads(page.with_suffix(".json").read_text())


def _check(content, parts):
    """Check that all parts have two competitors that compute the same."""
    tables = content["tables"]
    titles = [gpu_cases.PARTS[part].title for part in parts]
    assert [caption.partition(":")[0] for caption in tables] == titles
    for rows in tables.values():
        ours, theirs = rows
        assert [ours["competitor"], theirs["competitor"]] == ["medjax", "torch, eager"]
        first = [float(row["loss"].split(",")[0]) for row in rows]
        assert first[0] == pytest.approx(first[1], rel=1e-3)
        for row in rows:
            assert len(row["speed / torch's"]["values"]) == 3
            assert row["TFLOP/s"] > 0 and row["images/s"] > 0
            assert row["peak memory, GiB"] > 0.1
            assert row["MFU, %"] == "unknown"


@pytest.mark.release
def test_a_step_is_measured_against_torch(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    flags = "--controlnet-batch= --sample-batch= --minutes=30"
    _, content = _run(tmp_path, monkeypatch, flags)
    _check(content, ["lora"])


@pytest.mark.release
def test_all_parts_are_measured_against_torch(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    page, content = _run(tmp_path, monkeypatch, "--minutes=30")
    _check(content, list(gpu_cases.PARTS))
    assert "Not measured" not in page.partition("##")[2]


def test_what_the_time_does_not_allow_is_stated(tmp_path, monkeypatch):
    page, content = _run(tmp_path, monkeypatch, "--minutes=0.01")
    (rows,) = content["tables"].values()
    assert [row["part"] for row in rows] == list(gpu_cases.PARTS)
    assert all("it takes about 10 s, and 0 s were left" in row["why"] for row in rows)
    assert "## Not measured" in page


def _result(seconds, loss=1.0, flops=None, error=""):
    own = tuple(Turn(9.0, (s, s), (loss, loss), 3.0) for s in seconds)
    return Result(own, flops, error)


def _measured(monkeypatch, outcomes, batches=(8,), part="controlnet"):
    """Return the findings if the competitors have these outcomes."""
    monkeypatch.setattr(
        gpu_cases, "compete", lambda contest: {n: outcomes[n] for n in contest.makers}
    )
    cases = [Case(part, Settings("sd15", 512, b, "bfloat16")) for b in batches]
    limits = Limits(2, 3, "", time.monotonic() + 100, guess=50)
    return list(gpu_cases.measure(cases, limits, GPU))


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(gpu_cases.importlib.util, "find_spec", lambda name: name)


@pytest.mark.usefixtures("installed")
def test_rows_have_rates_ratios_and_a_share_of_the_peak(monkeypatch):
    ours = _result([0.1, 0.2, 0.1], flops=49.45e12)
    (finding,) = _measured(
        monkeypatch, {"medjax": ours, "torch": _result([0.2, 0.3, 0.2])}
    )
    row, theirs = finding.rows
    assert row["ms per step"].median == pytest.approx(100)
    assert row["images/s"] == pytest.approx(80)
    assert row["speed / torch's"].values == pytest.approx((2, 1.5, 2))
    assert row["MFU, %"] == pytest.approx(50)
    assert theirs["MFU, %"] == pytest.approx(25)
    assert finding.skipped == []
    assert [target["reached"] for target in gpu.targets(finding.rows)] == [True, True]


@pytest.mark.usefixtures("installed")
def test_the_first_batch_that_does_not_fit_ends_a_series(monkeypatch):
    outcomes = {"medjax": _result([0.1] * 3), "torch": OutOfMemory("torch", "full")}
    first, larger, smaller = _measured(monkeypatch, outcomes, (8, 16, 4))
    assert "out of memory" in first.skipped[0]["why"]
    assert larger.skipped[0]["why"] == "batch 8 does not fit into memory"
    assert "out of memory" in smaller.skipped[0]["why"]
    assert [row["competitor"] for row in larger.rows] == ["medjax"]
    assert larger.rows[0]["speed / torch's"] == "unknown"
    measured = [target["measured"] for target in gpu.targets(larger.rows)]
    assert measured == ["unknown", "unknown"]


@pytest.mark.usefixtures("installed")
def test_torch_without_its_compiler_is_named(monkeypatch):
    eager = _result([0.2] * 3, error="no gcc")
    (finding,) = _measured(monkeypatch, {"medjax": _result([0.1] * 3), "torch": eager})
    assert finding.rows[1]["competitor"] == "torch, eager"
    assert finding.skipped[0]["competitor"] == "torch, compiled"
    assert "no gcc" in finding.skipped[0]["why"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("part", ["controlnet", "sample"])
def test_competitors_that_differ_are_not_compared(part, monkeypatch):
    outcomes = {"medjax": _result([0.1] * 3), "torch": _result([0.1] * 3, loss=1.1)}
    (finding,) = _measured(monkeypatch, outcomes, part=part)
    assert [row["competitor"] for row in finding.rows] == ["medjax"]
    assert "differ" in finding.skipped[0]["why"]


def test_missing_packages_are_named_and_medjax_is_measured(monkeypatch):
    monkeypatch.setattr(gpu_cases.importlib.util, "find_spec", lambda name: None)
    (finding,) = _measured(monkeypatch, {"medjax": _result([0.1] * 3)})
    assert [row["competitor"] for row in finding.rows] == ["medjax"]
    assert finding.skipped[0]["why"] == "not installed: torch, diffusers"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--lora-batch=0", "--lora-batch=0: expected numbers of at least 1"),
        ("--size=100", "multiple of 64"),
        ("--repeats=0", "at least 1"),
        ("--minutes=0", "--minutes above 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(flags, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu", *flags.split()])
    with pytest.raises(UserError, match=said):
        gpu.main()


@pytest.mark.ci
def test_competitors_take_turns_and_say_why_they_cannot(tmp_path):
    makers = {
        "medjax": fakes.make_ours,
        "torch": fakes.make_without_compiler,
        "large": fakes.make_large,
    }
    settings = Settings("tiny", 32, 3)
    deadline = time.monotonic() + 300
    found = compete(Contest(makers, settings, 2, 2, 3, str(tmp_path), deadline))
    assert list(found) == list(makers)
    assert found["medjax"].flops == 4e9
    assert len(found["medjax"].turns) == 3
    assert found["medjax"].turns[0].losses == (3.0,) * 4
    assert "no compiler" in found["torch"].compile_error
    assert isinstance(found["large"], OutOfMemory)


@pytest.mark.ci
def test_a_competitor_that_is_not_ready_in_time_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "TURNS_SECONDS", 0.0)
    makers = {"endless": fakes.make_endless}
    deadline = time.monotonic() + 3
    contest = Contest(makers, Settings("tiny", 32), 2, 2, 3, str(tmp_path), deadline)
    assert isinstance(compete(contest)["endless"], OutOfTime)
    assert time.monotonic() < deadline + 10


@pytest.mark.release
def test_turns_that_ended_before_the_deadline_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "TURNS_SECONDS", 0.0)
    makers = {"medjax": fakes.make_ours, "stalling": fakes.make_stalling}
    deadline = time.monotonic() + 30
    contest = Contest(makers, Settings("tiny", 32), 1, 1, 3, str(tmp_path), deadline)
    found = compete(contest)
    # The third turn of the second one never ends. Each has as many turns as the other.
    assert [len(one.turns) for one in found.values()] == [2, 2]
    assert found["medjax"].flops == 4e9
