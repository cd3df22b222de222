"""The summary counts labels in every split, and stays short."""

from medjax.data.datasets.report import make_report, summary
from medjax.data.datasets.survey import Entry, Survey


def survey(labels):
    return Survey(
        name="folder",
        entries=(),
        skipped=(),
        counts={},
        label_names=tuple(labels),
        notes=("something to know",),
    )


def entries(path, **counts):
    return [
        Entry(f"{name}{i}", path, f"{name}{i % 2}", labels=(name,))
        for name, count in counts.items()
        for i in range(count)
    ]


def test_labels_are_counted_in_every_split(tmp_path):
    stored = {
        "train": entries(tmp_path, AD=5, NC=3),
        "test": entries(tmp_path, AD=1),
    }
    report = make_report(survey(["AD", "NC"]), stored, [], {}, tmp_path)
    assert report["splits"]["train"]["labels"] == {"AD": 5, "NC": 3}
    assert report["splits"]["test"]["labels"] == {"AD": 1, "NC": 0}
    assert report["splits"]["train"]["groups"] == 4
    table = [line.split() for line in summary(report, tmp_path).splitlines()]
    start = table.index(["label", "train", "test"])
    assert table[start + 1 : start + 3] == [["AD", "5", "1"], ["NC", "3", "0"]]
    assert table[start + 3] == ["something", "to", "know"]


def test_many_and_long_labels_keep_the_summary_short(tmp_path):
    names = ["x" * 300, *(f"breed{number:03}" for number in range(119))]
    report = make_report(survey(names), {"train": entries(tmp_path)}, [], {}, tmp_path)
    lines = summary(report, tmp_path).splitlines()
    assert len(lines) < 30
    assert max(map(len, lines[3:])) < 80
    assert "  and 100 more labels (all in report.json)" in lines


def test_no_labels_make_no_table(tmp_path):
    report = make_report(survey([]), {"train": entries(tmp_path)}, [], {}, tmp_path)
    assert "  label" not in summary(report, tmp_path)
