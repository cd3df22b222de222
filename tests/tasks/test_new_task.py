"""A new task is one file and one row: it trains, samples, and is refused export."""

import numpy as np
import pytest
from PIL import Image

from medjax.data.controls import Control
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.evaluation.grids import to_uint8
from medjax.export import export
from medjax.runs.config import make_config, parse
from medjax.sampling.image_files import sample
from medjax.sampling.source import load_source
from medjax.tasks import TASKS
from medjax.training.two_stages import train_stages
from tests.tasks.mean_color import ROW


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two steps; its folder and its state."""
    monkeypatch.setitem(TASKS, "mean_color", ROW)
    config = make_config("mean_color")
    config.data.update(image_size=16, batch_size=8, workers=0)
    config.data.phantoms.count = 16
    config.optim.learning_rate = 0.1
    config.train.steps = 2
    config.eval.update(examples=8, samples=2)
    return tmp_path / "run", train_stages(parse(config), tmp_path / "run")


@pytest.mark.ci
def test_a_new_task_trains_and_samples_and_is_refused_export(run, tmp_path):
    folder, state = run
    color = state.params["mean"]["color"]
    assert np.abs(color).min() > 0.05
    source = load_source(workdir=str(folder))
    assert not source.captioned and source.steps == 50
    (file,) = sample(
        source,
        [""],
        Control(source.size, None, None, {}),
        SamplingConfig(sampler=source.sampler, steps=source.steps),
        tmp_path / "out",
        mode="single",
    )
    drawn = np.asarray(Image.open(file))
    assert drawn.shape == (16, 16, 3)
    assert (drawn == to_uint8(np.asarray(color)[None, None])).all()
    message = "a run of task mean_color cannot be exported. Expected a run of task con"
    with pytest.raises(UserError, match=message):
        export(folder, tmp_path / "export", parity=False)
