"""Report what `medjax.prepare` found, stored and left out, as data and as text."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.data.datasets.survey import Entry, Skipped, Survey
from medjax.data.splits import SPLITS

REPORT = "report.json"

_KINDS = {"quarantine": "damaged and left out", "skipped": "left out"}
# How many items of each kind the summary names, and the longest line about each.
_NAMED, _WIDEST = 10, 300
# Metrics of fewer validation images are called uncertain.
_FEW = 32
# How many labels it counts: all of NIH's, but not every breed of dogs.
_LABELS, _WIDEST_LABEL = 20, 32


def make_report(
    survey: Survey,
    stored: Mapping[str, Sequence[Entry]],
    unreadable: Sequence[Skipped],
    settings: Mapping[str, Any],
    source: str | Path,
) -> dict[str, Any]:
    """Return the report, which can be stored as JSON.

    Args:
        survey: Survey of the source.
        stored: Written entries per split.
        unreadable: Images that turned out to be damaged.
        settings: Settings of the preparation.
        source: Source folder.
    """
    return {
        "dataset": survey.name,
        "source": str(source),
        "settings": dict(settings),
        "group_name": survey.group_name,
        "splits": {name: _split(survey, rows) for name, rows in stored.items()},
        "counts": dict(survey.counts),
        "notes": list(survey.notes),
        "quarantine": [dataclasses.asdict(x) for x in (*survey.damaged, *unreadable)],
        "skipped": [dataclasses.asdict(one) for one in survey.skipped],
    }


def _split(survey: Survey, entries: Sequence[Entry]) -> dict[str, Any]:
    counts = Counter(label for entry in entries for label in entry.labels)
    return {
        "examples": len(entries),
        "groups": len({entry.group for entry in entries}),
        "captions": sum(bool(entry.text.strip()) for entry in entries),
        "labels": {name: counts[name] for name in survey.label_names},
    }


def summary(report: Mapping[str, Any], out: str | Path) -> str:
    """Return the text that the command prints when it has finished."""
    group = report["group_name"].removesuffix("_id") + "s"
    lines = [f"{report['dataset']} is ready in {out}"]
    for name, numbers in report["splits"].items():
        lines.append(
            f"  {name:<11}{numbers['examples']:>7} images{numbers['groups']:>8} {group}"
        )
    if absent := [name for name in SPLITS if name not in report["splits"]]:
        lines.append(
            f"  no {group} in {' and '.join(absent)}; without validation, training "
            "measures nothing on unseen images; use larger shares (--split_percent) "
            "or more data"
        )
    validation = report["splits"].get("validation", {"examples": 0})["examples"]
    if 0 < validation < _FEW:
        lines.append(
            f"  only {validation} images in validation, so its metrics will be "
            "uncertain; use larger shares (--split_percent), more data, or "
            "medjax cross-validate"
        )
    examples, captions = (
        sum(split[what] for split in report["splits"].values())
        for what in ("examples", "captions")
    )
    lines.append(f"  captions: {captions} of {examples} images have one")
    lines += _label_table(report["splits"])
    lines += [f"  {note}" for note in report["notes"]]
    for name, count in report["counts"].items():
        lines.append(f"  {name.replace('_', ' ')}: {count}")
    for kind in _KINDS:
        lines += _left_out(report, kind, out)
    return "\n".join(lines)


def _label_table(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield lines with the number of images per label and split."""
    labels = list(next(iter(splits.values()))["labels"])
    if not labels:
        return
    shown = labels[:_LABELS]
    width = min(max(map(len, ["label", *shown])), _WIDEST_LABEL) + 2
    yield f"  {'label':<{width}}" + "".join(f"{name:>12}" for name in splits)
    for label in shown:
        counts = (f"{split['labels'][label]:>12}" for split in splits.values())
        name = (
            label if len(label) <= _WIDEST_LABEL else f"{label[: _WIDEST_LABEL - 1]}…"
        )
        yield f"  {name:<{width}}" + "".join(counts)
    if len(labels) > len(shown):
        yield f"  and {len(labels) - len(shown)} more labels (all in {REPORT})"


def _left_out(report: Mapping[str, Any], kind: str, out: str | Path) -> Iterator[str]:
    """Yield lines with the number of items that were left out, and the first items."""
    left_out = report[kind]
    if not left_out:
        return
    yield f"  {kind}: {len(left_out)} {_KINDS[kind]} (all in {Path(out) / REPORT})"
    for one in left_out[:_NAMED]:
        line = f"    {one['what']} {one['name']}: {one['reason']}"
        yield line if len(line) <= _WIDEST else f"{line[:_WIDEST]}…"
    if len(left_out) > _NAMED:
        yield f"    and {len(left_out) - _NAMED} more"
