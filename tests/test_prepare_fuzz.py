"""Hundreds of damaged images and rows: none stops `prepare`, and none is lost."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medjax.data.datasets.survey import shown
from medjax.prepare import prepare, summary
from tests.damage import DAMAGES, write_damaged, write_no_files
from tests.images import write_image
from tests.test_prepare import read_all

SEED = 20240229
# Images with each damage at least twice, and many more of them.
FEW = 48
MANY = pytest.param(160, marks=pytest.mark.release)


def prepared(out: Path) -> list[dict]:
    """Return all records; check that each decodes and is stored once."""
    records = [record for split in read_all(out).values() for record in split]
    for record in records:
        assert record["image"].dtype == np.uint8
        assert record["image"].ndim == 3
    ids = [record["id"] for record in records]
    assert len(set(ids)) == len(ids)
    return records


def check_report(out: Path, report: dict) -> None:
    """Check that the report is on the disk, gives reasons, and can be shown."""
    assert json.loads((out / "report.json").read_text()) == report
    for one in (*report["quarantine"], *report["skipped"]):
        assert one["name"]
        assert one["reason"]
        assert "\n" not in one["name"]
    said = summary(report, out)
    said.encode("utf-8")
    assert f"quarantine: {len(report['quarantine'])} damaged" in said


def named(report: dict, kind: str, what: str) -> list[str]:
    return [one["name"] for one in report[kind] if one["what"] == what]


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize(
    "seed", [SEED, pytest.param(SEED + 1, marks=pytest.mark.release)]
)
def test_every_image_is_prepared_or_in_quarantine(tmp_path, seed, count):
    source, out = tmp_path / "source", tmp_path / "out"
    written = [*write_damaged(source, count, seed), *write_no_files(source)]
    assert len(set(written)) == len(written)
    report = prepare("folder", source, out)
    records = prepared(out)
    check_report(out, report)
    quarantine = named(report, "quarantine", "image")
    assert not report["skipped"]
    everything = sorted(shown(path, source) for path in written)
    assert sorted([record["id"] for record in records] + quarantine) == everything
    assert report["counts"]["images_found"] == len(written)
    # Some images are refused and some are stored, and undamaged ones are stored.
    assert len(records) > len(written) // len(DAMAGES)
    assert len(quarantine) > len(written) // 3


def damaged_row(rng: np.random.Generator, number: int, good: str) -> bytes:
    """Return a line of a table: correct, or damaged in one of many ways."""
    line = good.encode()
    ways = (
        lambda: line,
        lambda: line,
        lambda: line.split(b",")[0],
        lambda: line + b",surplus",
        lambda: line + b",,",
        lambda: line.replace(b",", b',"', 1),
        lambda: b'"' + line,
        lambda: line + b"\0",
        lambda: line + b"\xe9\xff",
        lambda: line.decode().encode("utf-16-le"),
        lambda: b"," + line,
        lambda: b"../" + line,
        lambda: b"/etc/" + line,
        lambda: b"sub/../" + line,
        lambda: line + b"x" * 140_000,
        lambda: line.replace(b",", b";"),
        lambda: line.replace(b".png", b".gif", 1),
        lambda: b"gone" + line,
        lambda: line + b"\r\n" + line,
        lambda: b"\xef\xbb\xbf" + line,
        lambda: rng.bytes(30).replace(b"\n", b"").replace(b"\r", b"") or b"x",
        lambda: line[: int(rng.integers(1, len(line)))],
    )
    return ways[number % len(ways)]()


def count_records(content: bytes) -> int:
    """Return the number of lines that are not empty, without the header."""
    text = content.decode("utf-8", "replace")
    return sum(bool(line.strip("\r\n")) for line in io.StringIO(text, newline="")) - 1


@pytest.mark.parametrize("count", [FEW, MANY])
def test_every_row_of_captions_is_accounted_for(tmp_path, count):
    rng = np.random.default_rng(SEED)
    source, out = tmp_path / "source", tmp_path / "out"
    images = list(write_damaged(source / "sub", count // 4, SEED + 2))
    images += [write_image(source / f"{n}.png", seed=n) for n in range(count)]
    lines = [b"file_name,text,patient"]
    for number, image in enumerate(images):
        cells = io.StringIO()
        row = [shown(image, source), f"caption {number}", number % 40]
        csv.writer(cells).writerow(row)
        lines.append(damaged_row(rng, number, cells.getvalue().strip()))
    content = b"\r\n".join(lines) + b"\r\n"
    (source / "metadata.csv").write_bytes(content)
    report = prepare("folder", source, out, group_column="patient")
    records = prepared(out)
    check_report(out, report)

    unreadable = named(report, "quarantine", "image")
    rows = named(report, "quarantine", "row") + named(report, "skipped", "row")
    assert report["counts"]["rows_found"] == len(records) + len(unreadable) + len(rows)
    assert report["counts"]["rows_found"] == count_records(content)
    # Every image is listed: stored, damaged, or without a row.
    known = {record["id"].partition("#")[0] for record in records}
    known |= {name.partition("#")[0] for name in unreadable}
    known |= set(named(report, "skipped", "image"))
    # One image has a # in its name.
    assert {shown(image, source).partition("#")[0] for image in images} <= {
        name.partition("#")[0] for name in known
    }
    assert min(len(records), len(rows)) > count // 4


def damaged_cells(rng: np.random.Generator, number: int) -> dict[str, str]:
    """Return the wrong cells of one row of NIH's table."""
    ways = (
        {},
        {},
        {"Patient Age": "xx"},
        {"Patient Age": "9" * 5000},
        {"Patient Age": "-3"},
        {"Patient Age": "٣٤"},
        {"Patient ID": ""},
        {"Patient ID": "²"},
        {"Patient ID": "0000"},
        {"Finding Labels": ""},
        {"Finding Labels": "|"},
        {"Finding Labels": "Flu"},
        {"Finding Labels": "mass"},
        {"Finding Labels": "Mass|Mass"},
        {"Finding Labels": "Mass|No Finding"},
        {"Finding Labels": ' Mass | Edema, "x"'},
        {"Patient Gender": "?"},
        {"View Position": "LL\nPA"},
        {"Image Index": ""},
        {"Image Index": "../../secret.png"},
        {"Image Index": "\u202e.png"},
        {"Image Index": "000.png"},
    )
    return ways[number % len(ways)]


@pytest.mark.parametrize("count", [FEW, MANY])
def test_every_row_of_nih_is_accounted_for(tmp_path, count):
    rng = np.random.default_rng(SEED)
    source, out = tmp_path / "source", tmp_path / "out"
    images = [write_image(source / f"{n:03}.png", seed=n) for n in range(count)]
    for image in images[::10]:
        image.write_bytes(image.read_bytes()[:50])
    good = {
        "Image Index": "",
        "Finding Labels": "Mass",
        "Patient ID": "1",
        "Patient Age": "57",
        "Patient Gender": "F",
        "View Position": "PA",
    }
    with (source / "Data_Entry_2017_x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(good))
        writer.writeheader()
        for number, image in enumerate(images):
            row = good | {"Image Index": image.name, "Patient ID": str(number)}
            writer.writerow(row | damaged_cells(rng, number))
    report = prepare("nih_cxr", source, out)
    records = prepared(out)
    check_report(out, report)
    counts = report["counts"]
    unreadable = named(report, "quarantine", "image")
    rows = named(report, "quarantine", "row") + named(report, "skipped", "row")
    assert counts["rows_found"] == count
    assert counts["rows_found"] == (
        len(records) + len(unreadable) + len(rows) + counts["rows_without_image"]
    )
    stored = Counter(f"{record['id']}.png" for record in records)
    stored.update(f"{name}.png" for name in unreadable)
    stored.update(named(report, "skipped", "image"))
    assert stored == Counter(image.name for image in images)
    assert len(records) > count // 3
