"""`metrics.csv` and the events hold all written values, and survive a crash."""

import csv
import math
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from medjax.runs.config import parse
from medjax.training.metrics_writer import COLUMNS, MetricsWriter
from medjax.training.trackers import Trackers
from tests.tiny_unconditional import get_config


def read(workdir) -> list[dict[str, str]]:
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(workdir) -> list[Event]:
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            # TFRecord: length, its checksum, the record, its checksum.
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_columns_grow_as_metrics_appear(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 0.5})
        assert read(tmp_path)[0]["train/loss"] == "0.5"
        writer.write(2, {"train/loss": 0.25, "edge_f1": 0.1})
        writer.write(3, {"val/loss": math.nan})
    first, second, third = read(tmp_path)
    assert list(first) == [*COLUMNS, "edge_f1"]
    assert (first["edge_f1"], second["edge_f1"]) == ("", "0.1")
    assert third["val/loss"] == "nan"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_too_short_to_measure_still_has_the_columns(tmp_path):
    MetricsWriter(tmp_path).close()
    assert (tmp_path / "metrics.csv").read_text().strip() == ",".join(COLUMNS)


def test_values_come_back_to_the_last_bit(tmp_path):
    loss = float(np.float32(0.1) / np.float32(3))
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": loss})
    assert float(read(tmp_path)[0]["train/loss"]) == loss


def test_resuming_drops_the_rows_after_the_restored_step(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"train/loss": step, "lr": 1.0})
    with MetricsWriter(tmp_path, restored_step=20) as writer:
        writer.write(30, {"train/loss": 31.0, "new": 1.0})
    rows = read(tmp_path)
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert rows[2]["train/loss"] == "31.0"
    assert (rows[0]["lr"], rows[2]["lr"], rows[2]["new"]) == ("1.0", "", "1.0")


def test_what_comes_later_of_a_step_joins_its_row(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(10, {"train/loss": 0.5})
        writer.write(20, {"train/loss": 0.4})
    with MetricsWriter(tmp_path, restored_step=20) as writer:
        writer.write(20, {"val/loss": 0.6, "new": 1.0})
        writer.write(30, {"train/loss": 0.3})
        assert writer.history("val/loss") == {20: 0.6}
        assert writer.history("train/loss") == {10: 0.5, 20: 0.4, 30: 0.3}
    first, second, third = read(tmp_path)
    assert (first["step"], second["step"], third["step"]) == ("10", "20", "30")
    assert (second["train/loss"], second["val/loss"]) == ("0.4", "0.6")
    assert (first["new"], second["new"]) == ("", "1.0")


def test_starting_anew_forgets_the_old_rows(tmp_path):
    for _ in range(2):
        with MetricsWriter(tmp_path) as writer:
            writer.write(0, {"val/loss": 1.0})
    assert len(read(tmp_path)) == 1


@pytest.mark.parametrize(
    "tail",
    ["20,0.2", "20,0.2,,5.0", "20,0.2\n", "20,0.2,,x\n", "\0\0\0\n", '20,"0.2\n'],
)
def test_a_row_that_a_crash_cut_short_is_dropped(tmp_path, tail, caplog):
    with MetricsWriter(tmp_path) as writer:
        writer.write(10, {"train/loss": 0.1})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(tail)
    with MetricsWriter(tmp_path, restored_step=20) as writer:
        writer.write(30, {"train/loss": 0.3})
    assert [row["step"] for row in read(tmp_path)] == ["10", "30"]
    assert "dropped 1 damaged" in caplog.text


def test_an_empty_or_foreign_file_does_not_stop_a_run(tmp_path):
    for content in ("", "a,b\n1,2\n"):
        (tmp_path / "metrics.csv").write_text(content)
        with MetricsWriter(tmp_path, restored_step=1) as writer:
            writer.write(2, {"train/loss": 0.3})
        assert [row["step"] for row in read(tmp_path)] == ["2"]


def test_events_hold_scalars_and_images(tmp_path):
    with (
        Trackers(parse(get_config()), tmp_path, None) as trackers,
        MetricsWriter(tmp_path, trackers=trackers) as writer,
    ):
        writer.write(5, {"train/loss": 0.5})
        writer.write_image(5, "samples", np.zeros((4, 6, 3), np.uint8))
    values = {v.tag: (e.step, v) for e in events(tmp_path) for v in e.summary.value}
    step, loss = values["train/loss"]
    assert (step, loss.simple_value) == (5, 0.5)
    assert (values["samples"][1].image.height, values["samples"][1].image.width) == (
        4,
        6,
    )


def test_resuming_purges_the_events_after_the_restored_step(tmp_path):
    for restored in (None, 20):
        with Trackers(parse(get_config()), tmp_path, restored) as trackers:
            trackers.log(30, {"train/loss": 0.5})
    starts = [e.step for e in events(tmp_path) if e.session_log.status == 1]
    assert starts == [21]


def test_a_writer_that_is_not_enabled_writes_nothing(tmp_path):
    with MetricsWriter(tmp_path, enabled=False) as writer:
        writer.write(1, {"train/loss": 0.5})
        writer.write_image(1, "samples", np.zeros((4, 6, 3), np.uint8))
    assert not list(tmp_path.iterdir())
