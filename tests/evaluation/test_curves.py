"""Curves are what the table holds, smoothed without bending what is straight."""

import numpy as np
import pytest
from PIL import Image

from medjax.errors import UserError
from medjax.evaluation.curves import group, read_curves, save_curves, smooth
from medjax.training.metrics_writer import MetricsWriter

COLUMNS = [
    "train/grad_norm",
    "train/learning_rate",
    "val/edge_f1_chance",
    "train/loss",
    "train/perplexity",
    "val/loss",
    "val/edge_f1",
]


def write_run(workdir, steps=400):
    """Write a table as a run does: validation seldom, one update not finite."""
    rng = np.random.default_rng(0)
    with MetricsWriter(workdir) as writer:
        for step in range(1, steps + 1):
            falling = np.exp(-step / 80)
            row = {
                "train/loss": 0.05 + falling * rng.uniform(0.5, 1.5),
                "train/grad_norm": float("nan") if step == 7 else rng.uniform(1, 2),
                "train/learning_rate": 1e-4 * min(1, step / 20),
                "images_per_second": 3.0,
            }
            if step % 50 == 0:
                row["val/loss"] = 0.06 + falling + 1e-3 * (step - 300) * (step > 300)
                row["val/edge_f1"] = 0.8 - 0.5 * falling
                row["val/edge_f1_chance"] = 0.3
            writer.write(step, row)
    return workdir / "metrics.csv"


def test_columns_are_read_where_they_have_values(tmp_path):
    curves = read_curves(write_run(tmp_path))
    assert list(curves["val/loss"].steps) == list(range(50, 401, 50))
    assert len(curves["train/loss"].steps) == 400
    assert np.isnan(curves["train/grad_norm"].values[6])
    assert not {"step", "images_per_second"} & curves.keys()


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text("step,train/loss\n1,0.5\n2,0.25\n3,0.1")
    assert list(read_curves(table)["train/loss"].values) == [0.5, 0.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,train/loss\n1,0.5\n2,low\n", "line 3: not a row of a run's metrics"),
        ("step,train/loss\n1,0.5,7\n", "line 2: not a row"),
        ("epoch,loss\n1,0.5\n", "expected a column 'step'"),
        ("step,train/loss\n", "has no values yet"),
        ("", "has no values yet"),
    ],
)
def test_another_table_is_an_error(tmp_path, text, message):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_curves(tmp_path / "metrics.csv")


def test_no_table_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.csv: cannot be read"):
        read_curves(tmp_path / "metrics.csv")


def test_the_loss_comes_first_then_what_is_validated_and_steering_last():
    assert group(COLUMNS) == {
        "loss": ["train/loss", "val/loss"],
        "edge_f1": ["val/edge_f1_chance", "val/edge_f1"],
        "perplexity": ["train/perplexity"],
        "grad_norm": ["train/grad_norm"],
        "learning_rate": ["train/learning_rate"],
    }


def test_a_rate_of_a_network_s_own_is_steering_too():
    own = "train/learning_rate_text_encoder"
    assert list(group([own, "train/perplexity"])) == [
        "perplexity",
        "learning_rate_text_encoder",
    ]


def test_smoothing_leaves_a_line_straight_and_noise_small():
    line = np.linspace(3, -5, 137)
    np.testing.assert_allclose(smooth(line), line, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=2000)
    assert smooth(noise)[50:-50].std() < 0.15
    assert list(smooth(np.array([2.0]))) == [2.0]


def test_smoothing_passes_over_what_is_not_finite():
    values = np.full(200, 4.0)
    values[[50, 51]] = np.nan, np.inf
    np.testing.assert_array_equal(smooth(values), 4.0)
    assert np.isnan(smooth(np.full(3, np.nan))).all()


@pytest.mark.parametrize(
    "steps",
    [
        50,
        pytest.param(1, marks=pytest.mark.ci),
        pytest.param(400, marks=pytest.mark.release),
    ],
)
def test_a_page_is_drawn_also_of_a_short_run(tmp_path, steps):
    pytest.importorskip("matplotlib")
    save_curves(write_run(tmp_path / "run", steps), tmp_path / "made" / "curves.png")
    with Image.open(tmp_path / "made" / "curves.png") as page:
        colours = np.unique(np.asarray(page.convert("RGB")).reshape(-1, 3), axis=0)
        assert page.width == 1100
        assert len(colours) > 10
