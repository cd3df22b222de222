"""Evaluators run on schedule, and their results count once."""

import csv
import dataclasses
import logging

import numpy as np
import pytest

from medjax.errors import UserError
from medjax.runs.config import parse
from medjax.runs.sections import BestConfig
from medjax.training.evaluators import Evaluation, Evaluators
from medjax.training.metrics_writer import MetricsWriter
from medjax.training.validation_loss import NoValidation
from tests.tiny_demo import get_config


@dataclasses.dataclass(frozen=True)
class Fixed:
    """An evaluator that always returns the same result."""

    every: int
    found: Evaluation | None
    work: str = "measuring"

    def due(self, step):
        return step % self.every == 0

    def run(self, params, frozen):
        return self.found


VALIDATION = Fixed(2, Evaluation({"val/loss": 1.0}))
PAGES = Fixed(4, Evaluation({"val/ssim": 0.5}, np.zeros((8, 8, 3), np.uint8)))


def small_config(best=None):
    config = get_config()
    config.eval.update(every=2, sample_every=4)
    config.train.steps = 8
    return dataclasses.replace(parse(config), best=best or BestConfig())


def opened(writer, workdir, config, evaluators=(VALIDATION, PAGES)):
    return Evaluators(config, workdir, evaluators, writer)


def rows(workdir):
    with (workdir / "metrics.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


def test_the_schedule(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        evaluators = opened(writer, tmp_path, small_config())
        assert evaluators.run({}, {}, 1, everything=False) == {}
        assert evaluators.run({}, {}, 2, everything=False) == {"val/loss": 1.0}
        assert evaluators.run({}, {}, 4, everything=False) == {
            "val/loss": 1.0,
            "val/ssim": 0.5,
        }
        assert evaluators.run({}, {}, 5, everything=True) == {
            "val/loss": 1.0,
            "val/ssim": 0.5,
        }
    assert list(rows(tmp_path)) == [2, 4, 5]
    pages = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert pages == ["0000004.png", "0000005.png"]
    assert (tmp_path / "curves.png").is_file()


def test_only_what_is_due_by_schedule_makes_a_step_due(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        evaluators = opened(writer, tmp_path, small_config())
        assert [step for step in range(1, 9) if evaluators.due(step)] == [2, 4, 6, 8]
        late = dataclasses.replace(small_config().train, steps=7)
        config = dataclasses.replace(small_config(), train=late)
        assert opened(writer, tmp_path, config).due(7)


def test_without_validation_nothing_is_measured_but_the_schedule_stays(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        pages = Fixed(4, Evaluation({"train/ssim": 0.5}))
        evaluators = opened(
            writer, tmp_path, small_config(), evaluators=(NoValidation(2), pages)
        )
        assert evaluators.due(2)
        assert evaluators.run({}, {}, 2, everything=False) == {}
        assert evaluators.run({}, {}, 4, everything=False) == {"train/ssim": 0.5}
    assert list(rows(tmp_path)) == [4]


@pytest.mark.parametrize("number", [0, 1])
def test_what_a_signal_ended_leaves_nothing(tmp_path, number):
    both = [VALIDATION, PAGES]
    both[number] = dataclasses.replace(both[number], found=None)
    with MetricsWriter(tmp_path) as writer:
        evaluators = opened(writer, tmp_path, small_config(), tuple(both))
        assert evaluators.run({}, {}, 4, everything=False) is None
    assert rows(tmp_path) == {}
    assert not (tmp_path / "samples").exists()


def test_what_time_asks_for_is_nothing_to_patience(tmp_path):
    config = small_config(BestConfig(patience=1, min_change=1e9))
    with MetricsWriter(tmp_path) as writer:
        evaluators = opened(writer, tmp_path, config)
        for step in (2, 3, 5, 7):
            evaluators.run({}, {}, step, everything=step % 2 == 1)
        assert not evaluators.patience.exhausted
    with MetricsWriter(tmp_path, restored_step=7) as writer:
        assert not opened(writer, tmp_path, config).patience.exhausted
        opened(writer, tmp_path, config).run({}, {}, 8, everything=True)
    with MetricsWriter(tmp_path, restored_step=8) as writer:
        assert opened(writer, tmp_path, config).patience.exhausted


def test_what_is_measured_again_counts_once(tmp_path):
    """This holds for a kill between writing the row and saving the checkpoint, too."""
    config = small_config(BestConfig(patience=1))
    for _ in range(3):
        with MetricsWriter(tmp_path, restored_step=2) as writer:
            evaluators = opened(writer, tmp_path, config)
            assert evaluators.run({}, {}, 2, everything=False) == {"val/loss": 1.0}
            assert not evaluators.patience.exhausted


def test_the_log_has_a_line_an_evaluation(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="medjax")
    with MetricsWriter(tmp_path) as writer:
        evaluators = opened(writer, tmp_path, small_config(), (VALIDATION,))
        for step in (2, 4):
            evaluators.run({}, {}, step, everything=False)
    # Only the first evaluation is announced, because only the first compiles.
    assert caplog.messages == [
        "step 2/8 · measuring; the first time compiles too",
        "step 2/8 · val loss 1.0000 · took 0:00",
        "step 4/8 · val loss 1.0000 · took 0:00",
    ]


def test_a_metric_that_nothing_measures_is_refused(tmp_path):
    config = small_config(BestConfig(metric="val/edge_f1"))
    with MetricsWriter(tmp_path) as writer:
        evaluators = opened(writer, tmp_path, config)
        with pytest.raises(UserError, match="Validation writes val/loss, val/ssim"):
            evaluators.run({}, {}, 4, everything=False)
