"""A run that no longer improves ends, and stays ended after a resumption."""

import math

import pytest

from medjax.errors import UserError
from medjax.runs.config import make_config, parse
from medjax.runs.sections import BestConfig
from medjax.tasks import TASKS
from medjax.training.early_stopping import Patience


def waited(values, **fields):
    """Return the number of values after which patience was exhausted; None if never."""
    patience = Patience(BestConfig(**fields))
    for number, value in enumerate(values, 1):
        patience.look(value)
        if patience.exhausted:
            return number
    return None


def test_it_waits_for_as_many_as_it_is_told():
    values = [3.0, 2.0, 2.5, 2.4, 1.0, 1.1, 1.2, 1.3]
    assert waited(values, patience=3) == 8
    assert waited(values, patience=2) == 4
    assert waited(values, patience=4) is None
    assert waited(values) is None


def test_an_improvement_has_a_least_size():
    values = [1.0, 0.95, 0.9, 0.85]
    assert waited(values, patience=2) is None
    # From 1.0 to 0.9 the improvement is large enough, but too late.
    assert waited(values, patience=1, min_change=0.08) == 2
    assert waited(values, patience=2, min_change=0.08) is None


@pytest.mark.parametrize(
    "metric",
    [
        "val/psnr_db",
        "val/ssim",
        "val/edge_f1",
        "val/perplexity",
        "val/pneumothorax_agreement",
    ],
)
def test_of_some_more_is_better(metric):
    assert BestConfig(metric).mode == "max"
    assert waited([1.0, 2.0, 3.0], metric=metric, patience=1) is None
    assert waited([3.0, 2.0], metric=metric, patience=1) == 2


@pytest.mark.parametrize("metric", ["val/loss", "val/mse", "val/frechet_distance"])
def test_of_others_less_is(metric):
    assert BestConfig(metric).mode == "min"
    assert waited([1.0, 2.0], metric=metric, patience=1) == 2


def test_nan_is_no_improvement():
    assert waited([math.nan, math.nan], patience=2) == 2
    assert waited([1.0, math.nan, 0.5], patience=2) is None


def test_a_history_counts():
    config = BestConfig(patience=2)
    assert Patience(config, [1.0, 1.1, 1.2]).exhausted
    assert not Patience(config, [1.0, 1.1, 0.9]).exhausted


def test_what_comes_after_its_end_does_not_undo_it():
    values = [1.0, 1.1, 0.5]
    patience = Patience(BestConfig(patience=1))
    for value in values:
        patience.look(value)
    assert patience.exhausted
    assert Patience(BestConfig(patience=1), values).exhausted
    # With more patience, the run would continue.
    assert not Patience(BestConfig(patience=2), values).exhausted


def test_an_unknown_metric_is_refused_without_patience_too():
    patience = Patience(BestConfig("val/sim"))
    with pytest.raises(UserError, match="did you mean 'val/ssim'"):
        patience.look_at({"val/ssim": 0.5, "val/loss": 1.0}, complete=True)
    # Data without a validation split have no validation metrics.
    patience.look_at({"train/loss": 1.0}, complete=True)


def test_what_no_validation_measures_is_refused():
    patience = Patience(BestConfig("val/ssim", patience=1))
    patience.look_at({"train/loss": 1.0}, complete=False)
    patience.look_at({"val/loss": 1.0}, complete=False)
    with pytest.raises(UserError, match="val/ssim: unknown .* writes val/loss, val/"):
        patience.look_at({"val/loss": 1.0, "val/edge_f1": 0.5}, complete=True)
    with pytest.raises(UserError, match="writes no metric"):
        patience.look_at({}, complete=True)


@pytest.mark.parametrize(
    "fields", [{"metric": "train/loss"}, {"patience": 0}, {"min_change": -1.0}]
)
def test_wrong_settings_are_refused(fields):
    with pytest.raises(UserError):
        BestConfig(**fields)


@pytest.mark.parametrize(
    ("metric", "switch"),
    [
        ("val/frechet_distance", "frechet_distance"),
        ("val/effusion_agreement", "chest_findings"),
        ("val/effusion_presence_unasked", "chest_findings"),
    ],
)
def test_what_nobody_measures_is_refused_before_training(metric, switch):
    config = make_config("text_to_image")
    config.best.metric = metric
    with pytest.raises(UserError, match=f"with config.eval.{switch}=True"):
        parse(config)


@pytest.mark.parametrize(
    ("task", "metric", "said"),
    [
        ("text_to_image", "val/sim", "did you mean 'val/ssim'"),
        ("controlnet", "val/ssim", "Expected one of val/loss, val/edge_f1"),
        ("unconditional", "val/psnr_db", "Expected one of val/loss"),
        ("vq_vae", "val/usage", "val/codebook_usage"),
    ],
)
def test_what_a_task_does_not_measure_is_refused_before_training(task, metric, said):
    config = make_config(task)
    config.best.metric = metric
    with pytest.raises(UserError, match=said):
        parse(config)


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_measures_may_decide(task):
    config = make_config(task)
    for name in ("loss", *TASKS[task].metrics):
        config.best.metric = f"val/{name}"
        assert parse(config).best.metric == f"val/{name}"
