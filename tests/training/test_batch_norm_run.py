"""A run with batch normalisation trains, resumes, and samples with running averages."""

import numpy as np
import pytest

from configs import knee_ddpm
from medjax import trees
from medjax.errors import UserError
from medjax.runs.config import parse
from medjax.runs.open_run import load_run
from medjax.training.loop import train


def small(steps=2, accumulation=1):
    """Return the published config for knees, as small as possible."""
    config = knee_ddpm.get_config("published")
    config.data.update(root="", image_size=16, batch_size=16, workers=0)
    config.data.phantoms.count = 32
    config.model.update(block_out_channels=(8, 8, 16))
    config.optim.update(ema_decay=0.9)
    config.train.update(steps=steps, gradient_accumulation_steps=accumulation)
    config.eval.update(examples=16, samples=2, sampler_steps=2)
    return parse(config)


@pytest.mark.release
def test_it_goes_on_as_if_it_had_not_stopped(tmp_path, caplog):
    whole = train(small(3), tmp_path / "whole")
    train(small(2), tmp_path / "parts")
    parts = train(small(3), tmp_path / "parts")
    assert "with a changed config: config.train.steps is 3, was 2" in caplog.text
    # A constant rate does not change with the number of steps.
    assert "learning_rate at step" not in caplog.text
    for path, leaf in trees.flatten(whole.statistics).items():
        np.testing.assert_array_equal(trees.flatten(parts.statistics)[path], leaf)
    run = load_run(tmp_path / "parts")
    own = trees.flatten(run.model.nets["batch_stats"])
    # Sampling uses averages of the running averages, as it does of the weights.
    assert own.keys() == trees.flatten(whole.statistics["batch_stats"]).keys()
    assert any(np.asarray(leaf).std() > 0 for leaf in own.values())


def test_microbatches_would_train_something_else(tmp_path):
    with pytest.raises(UserError, match="batch normalisation would see only one"):
        train(small(accumulation=2), tmp_path)
