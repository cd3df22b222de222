"""What is evaluated when, and what of it counts."""

import csv
import dataclasses

import numpy as np
import pytest

from medjax.errors import UserError
from medjax.runs.config import parse
from medjax.runs.sections import BestConfig
from medjax.training.evaluators import Evaluations
from medjax.training.metrics_writer import MetricsWriter
from medjax.training.validation import Samples
from tests.tiny_demo import get_config

PAGE = Samples(np.zeros((8, 8, 3), np.uint8), {"ssim": 0.5})


def small_config(best=None):
    config = get_config()
    config.eval.update(every=2, sample_every=4)
    config.train.steps = 8
    return dataclasses.replace(parse(config), best=best or BestConfig())


def opened(writer, workdir, config, validate=lambda *_: {"loss": 1.0}, page=PAGE):
    return Evaluations(config, workdir, validate, lambda *_: page, writer)


def rows(workdir):
    with (workdir / "metrics.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


def test_the_schedule(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        evaluate = opened(writer, tmp_path, small_config())
        assert evaluate({}, {}, 1, last=False) == {}
        assert evaluate({}, {}, 2, last=False) == {"val/loss": 1.0}
        assert evaluate({}, {}, 4, last=False) == {"val/loss": 1.0, "val/ssim": 0.5}
        assert evaluate({}, {}, 5, last=True) == {"val/loss": 1.0, "val/ssim": 0.5}
    assert list(rows(tmp_path)) == [2, 4, 5]
    pages = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert pages == ["0000004.png", "0000005.png"]
    assert (tmp_path / "curves.png").is_file()


def test_training_examples_are_not_called_validation(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        evaluate = opened(writer, tmp_path, small_config(), validate=None)
        assert evaluate({}, {}, 4, last=False) == {"train/ssim": 0.5}


@pytest.mark.parametrize("stopped", [{"validate": lambda *_: None}, {"page": None}])
def test_what_a_signal_ended_leaves_nothing(tmp_path, stopped):
    with MetricsWriter(tmp_path) as writer:
        evaluate = opened(writer, tmp_path, small_config(BestConfig()), **stopped)
        assert evaluate({}, {}, 4, last=False) is None
    assert rows(tmp_path) == {}
    assert not (tmp_path / "samples").exists()


def test_what_time_asks_for_is_nothing_to_patience(tmp_path):
    config = small_config(BestConfig(patience=1, min_change=1e9))
    with MetricsWriter(tmp_path) as writer:
        evaluate = opened(writer, tmp_path, config)
        for step in (2, 3, 5, 7):
            evaluate({}, {}, step, last=step % 2 == 1)
        assert not evaluate.patience.exhausted
    with MetricsWriter(tmp_path, restored_step=7) as writer:
        assert not opened(writer, tmp_path, config).patience.exhausted
        opened(writer, tmp_path, config)({}, {}, 8, last=True)
    with MetricsWriter(tmp_path, restored_step=8) as writer:
        assert opened(writer, tmp_path, config).patience.exhausted


def test_what_is_measured_again_counts_once(tmp_path):
    """Killed between the row and the checkpoint that is to have it, too."""
    config = small_config(BestConfig(patience=1))
    for _ in range(3):
        with MetricsWriter(tmp_path, restored_step=2) as writer:
            evaluate = opened(writer, tmp_path, config)
            assert evaluate({}, {}, 2, last=False) == {"val/loss": 1.0}
            assert not evaluate.patience.exhausted


def test_a_metric_that_nothing_measures_is_refused(tmp_path):
    config = small_config(BestConfig(metric="val/edge_f1"))
    with MetricsWriter(tmp_path) as writer:
        evaluate = opened(writer, tmp_path, config)
        with pytest.raises(UserError, match="validation measures val/loss, val/ssim"):
            evaluate({}, {}, 4, last=False)
