r"""Prepare a folder of images for training: write it as a TFDS data set.

NIH ChestX-ray14 as published (images anywhere below the folder, Data_Entry_2017*.csv):

    python -m medjax.prepare --dataset=nih_cxr --source=NIH --out=DIR

Any folder of images, with metadata.csv or metadata.jsonl (file_name, text, optionally
conditioning_image), or without:

    python -m medjax.prepare --dataset=folder --source=IMAGES --out=DIR \
        --group_column=patient

Then train on it with --config.data.root=DIR.

Images and rows that cannot be used are left where they are, and named with the reason
in DIR/report.json: under `quarantine` what is damaged, under `skipped` what is whole
and belongs to nothing. Every other image and row is in the data set.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from medjax import cli
from medjax.data.datasets.survey import Survey
from medjax.data.splits import DEFAULT_FRACTIONS, SPLITS, parse_percent
from medjax.errors import UserError, nearest

_LOGGER = logging.getLogger(__name__)
_DATASETS = ("nih_cxr", "folder")
_STYLES = ("findings", "binary")
# Hidden, so that nothing half-written is ever taken for a data set.
_STAGING = ".incomplete"
_REPORT = "report.json"
_KINDS = {"quarantine": "damaged and left out", "skipped": "left out"}
# How many of each kind the summary names, and how much it says of each.
_NAMED, _WIDEST = 10, 300


def prepare(
    dataset: str,
    source: str | Path,
    out: str | Path,
    *,
    caption_style: str = "",
    group_column: str = "",
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the images of `source` as a TFDS data set in `out`.

    Args:
        dataset: "nih_cxr" or "folder".
        source: Folder with the images.
        out: Folder to write to; what is there stays until the new data are complete.
        caption_style: "findings", the default, or "binary" (nih_cxr).
        group_column: Column to split by (folder).
        fractions: Expected share of the groups per split.
        overwrite: Replace a data set that is there.

    Returns:
        The report, as it stands in `out`/report.json.

    Raises:
        UserError: If something is missing, `out` has a data set already, no image can
            be read, or the disk is full or fails; `out` is then as it was before.
    """
    from medjax.data.datasets.builder import SurveyBuilder

    target = Path(out).expanduser()
    own = _own_settings(dataset, caption_style, group_column)
    cli.check_writable(out, "--out")
    _check_target(target, dataset, overwrite)
    survey = _survey(dataset, Path(source).expanduser(), own)
    settings = own | {"split_fractions": dict(fractions)}
    staging = target / _STAGING
    if staging.exists():
        _LOGGER.warning("removing what an interrupted run left in %s", staging)
        shutil.rmtree(staging)
    builder = SurveyBuilder(survey, fractions, settings, staging)
    try:
        with _disk_errors(out):
            builder.write()
            report = _report(survey, builder, settings, source)
            text = json.dumps(report, indent=1) + "\n"
            (staging / _REPORT).write_text(text, encoding="utf-8")
            if (target / dataset).exists():
                shutil.rmtree(target / dataset)
            (staging / dataset).rename(target / dataset)
            (staging / _REPORT).replace(target / _REPORT)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


@contextlib.contextmanager
def _disk_errors(out: str | Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into `UserError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # ArrayRecord raises RuntimeError with the operating system's words in it.
        if isinstance(error, RuntimeError) and "write() failed" not in str(error):
            raise
        reason = str(error).partition("write() failed: ")[2].partition(";")[0]
        raise UserError(
            f"--out={out}: cannot be written: {reason or error}; what was there is as "
            "it was"
        ) from error


def _own_settings(
    dataset: str, caption_style: str, group_column: str
) -> dict[str, Any]:
    """Return the settings of this data set; refuse those of the other."""
    if dataset not in _DATASETS:
        raise UserError(
            f"--dataset={dataset}: expected {' or '.join(_DATASETS)}"
            f"{nearest(dataset, _DATASETS)}"
        )
    if dataset == "folder":
        if caption_style:
            raise UserError("--caption_style is for --dataset=nih_cxr")
        return {"group_column": group_column}
    if group_column:
        raise UserError("--group_column is for --dataset=folder; nih_cxr has patients")
    style = caption_style or _STYLES[0]
    if style not in _STYLES:
        raise UserError(
            f"--caption_style={style}: expected {' or '.join(_STYLES)}"
            f"{nearest(style, _STYLES)}"
        )
    return {"caption_style": style}


def _check_target(target: Path, dataset: str, overwrite: bool) -> None:
    """Refuse a target with another data set, or with one that must not be replaced."""
    from medjax.data.prepared import describe_splits, read_metadata
    from medjax.data.roots import find_prepared

    for folder in find_prepared(target):
        if folder.parent != target / dataset:
            raise UserError(
                f"--out={target}: has another data set, {folder}; choose an --out of "
                "its own"
            )
        # One that is damaged can be replaced without being read.
        if not overwrite:
            metadata = read_metadata(folder)
            raise UserError(
                f"--out={target}: already has {metadata.name}, complete: "
                f"{describe_splits(metadata.splits)}; nothing to do, or --overwrite"
            )


def _survey(dataset: str, source: Path, settings: dict[str, Any]) -> Survey:
    """Look over the source folder."""
    from medjax.data.datasets.folder import survey_folder
    from medjax.data.datasets.nih_cxr import survey_nih_cxr

    look = {"folder": survey_folder, "nih_cxr": survey_nih_cxr}[dataset]
    return look(source, **settings)


def _report(
    survey: Survey,
    builder: Any,
    settings: dict[str, Any],
    source: str | Path,
) -> dict[str, Any]:
    splits = {}
    for name, entries in builder.stored.items():
        groups = {entry.group for entry in entries}
        splits[name] = {"examples": len(entries), "groups": len(groups)}
    quarantine = (*survey.damaged, *builder.unreadable)
    return {
        "dataset": survey.name,
        "source": str(source),
        "settings": settings,
        "group_name": survey.group_name,
        "splits": splits,
        "counts": dict(survey.counts),
        "quarantine": [dataclasses.asdict(one) for one in quarantine],
        "skipped": [dataclasses.asdict(one) for one in survey.skipped],
    }


def summary(report: Mapping[str, Any], out: str | Path) -> str:
    """Return what the command says at its end."""
    group = report["group_name"].removesuffix("_id") + "s"
    lines = [f"{report['dataset']} is ready in {out}"]
    for name, numbers in report["splits"].items():
        lines.append(
            f"  {name:<11}{numbers['examples']:>7} images{numbers['groups']:>8} {group}"
        )
    if absent := [name for name in SPLITS if name not in report["splits"]]:
        lines.append(
            f"  no {group} fell into {' and '.join(absent)}; training needs one in "
            "validation: larger shares (--split_percent) or more data make it"
        )
    if report["dataset"] == "folder" and not report["settings"]["group_column"]:
        lines.append(
            "  split image by image: a patient's may fall into several splits; "
            "--group_column keeps them together"
        )
    for name, count in report["counts"].items():
        lines.append(f"  {name.replace('_', ' ')}: {count}")
    for kind, what in _KINDS.items():
        if left_out := report[kind]:
            lines.append(
                f"  {kind}: {len(left_out)} {what} (all in {Path(out) / _REPORT})"
            )
            for one in left_out[:_NAMED]:
                line = f"    {one['what']} {one['name']}: {one['reason']}"
                lines.append(line if len(line) <= _WIDEST else f"{line[:_WIDEST]}…")
            if len(left_out) > _NAMED:
                lines.append(f"    and {len(left_out) - _NAMED} more")
    return "\n".join(lines)


def define_flags() -> None:
    """Define the command's flags; not on import, where commands would collide."""
    flags.DEFINE_string("dataset", None, " or ".join(_DATASETS), required=True)
    flags.DEFINE_string("source", None, "folder of the images", required=True)
    flags.DEFINE_string("out", None, "folder to write to", required=True)
    flags.DEFINE_string(
        "caption_style",
        "",
        "nih_cxr: 'findings' (the default) names findings, view, age and sex; 'binary' "
        "says only whether there is a disease",
    )
    flags.DEFINE_string(
        "group_column",
        "",
        "folder: column of the metadata (a patient's id, say) whose images the split "
        "keeps together",
    )
    flags.DEFINE_list(
        "split_percent",
        ["80", "10", "10"],
        "expected shares of train, validation and test; each group is drawn by itself, "
        "so small sets stray from them",
    )
    flags.DEFINE_bool("overwrite", False, "replace the data set in --out")


def main(_: Sequence[str]) -> None:
    """Prepare as the flags say."""
    # Pillow also warns of damage that it can live with.
    warnings.filterwarnings("ignore", module="PIL")
    values = flags.FLAGS
    report = prepare(
        values.dataset,
        values.source,
        values.out,
        caption_style=values.caption_style,
        group_column=values.group_column,
        fractions=parse_percent(values.split_percent),
        overwrite=values.overwrite,
    )
    print(summary(report, values.out))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
