"""The lines of a run's log are aligned, and have the main numbers."""

import math

import pytest

from medjax.training.log_lines import evaluation_line, number, training_line

ROW = {
    "train/loss": 0.07123,
    "train/grad_norm": 0.05674,
    "train/skipped_updates": 0.0,
    "train/learning_rate": 1e-3,
    "images_per_second": 16.13,
    "seconds_per_step": 0.5,
    "data_wait_fraction": 0.12,
    "host_memory_gib": 1.4,
}


def test_a_report_is_one_line():
    assert training_line(120, 600, ROW, 272.0) == (
        "step 120/600 · loss 0.0712 · lr 1.0e-03 ·  16.1 images/s · "
        " 12% waiting for data · 4:32 left"
    )


def test_the_first_report_has_no_speed_yet():
    row = {"train/loss": 1.5, "train/learning_rate": 2e-5}
    assert training_line(1, 600, row, None) == (
        "step   1/600 · loss 1.5000 · lr 2.0e-05"
    )


def test_reports_are_aligned():
    lines = [
        training_line(step, 12_000, ROW | {"train/loss": loss} | more, 10.0 * step)
        for step, loss, more in (
            (1, 0.0123, {"images_per_second": 0.51}),
            (99, 12.5, {"images_per_second": 9.996}),
            (400, 999.99, {"images_per_second": 123.4, "data_wait_fraction": 1.0}),
            (12_000, 4321.0, {"data_wait_fraction": 0.004}),
        )
    ]
    places = {tuple(i for i, c in enumerate(line) if c == "·") for line in lines}
    assert len(places) == 1, "\n".join(lines)


def test_skipped_updates_show_only_where_there_are_any():
    assert "skipped" not in training_line(1, 2, ROW, 1.0)
    row = ROW | {"train/skipped_updates": 3.0}
    assert training_line(1, 2, row, 1.0).endswith(" · 3 skipped")


def test_a_network_with_its_own_rate_shows_it():
    row = {"train/learning_rate": 1e-4, "train/learning_rate_text_encoder": 5e-6}
    line = training_line(1, 2, row, None)
    assert line == "step 1/2 · lr 1.0e-04 (text_encoder 5.0e-06)"


def test_measures_stand_beside_chance():
    row = {
        "val/loss": 0.068,
        "val/edge_f1": 0.536,
        "val/edge_f1_chance": 0.439,
        # A level of chance without its metric.
        "val/last_chance": 0.5,
    }
    assert evaluation_line(7, 10, row, 12.2) == (
        "step  7/10 · val loss 0.0680 · edge_f1 0.5360 (chance 0.4390) · "
        "last_chance 0.5000 · took 0:12"
    )


def test_measures_of_training_examples_are_not_called_validation():
    line = evaluation_line(7, 10, {"train/edge_f1": 0.5}, 0)
    assert line == "step  7/10 · train edge_f1 0.5000 · took 0:00"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (0.07123, "0.0712"),
        (-0.5, "-0.5000"),
        (12.3456, "12.346"),
        (9999.0, "9999.0"),
        (12345.0, "1.2e+04"),
        (0.00012, "1.2e-04"),
        (math.nan, "   nan"),
        (math.inf, "   inf"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text
