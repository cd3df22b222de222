"""Survey NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients.

The data are as published. The images may be anywhere below the source folder
(`images/`, `images_001/images/`, ...), at any resolution, as PNG or JPEG. Their stems
match them to the rows of `Data_Entry_2017*.csv`.

Source: Wang et al., "ChestX-ray8: hospital-scale chest X-ray database and benchmarks",
CVPR 2017.
"""

import re
from pathlib import Path

from medjax.data.captions import FINDING_NAMES, NO_FINDING, CaptionStyle, caption
from medjax.data.datasets.survey import (
    Entry,
    Found,
    Skipped,
    Survey,
    find_images,
    printable,
    shown,
)
from medjax.data.datasets.tables import Row, Table, read_csv
from medjax.errors import UserError, nearest

LABELS = tuple(FINDING_NAMES)
UNKNOWN_AGE = -1
"""Age in years that is stored if it is missing or cannot be true."""

_SUFFIXES = (".png", ".jpg", ".jpeg")
_TABLES = "Data_Entry_2017*.csv"
_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
# The first edition writes 058Y, 013M, 002D. It and the second have ages up to 414.
_AGE = re.compile(r"(\d{1,5})([YMD]?)")
_YEARS = {"": 1, "Y": 1, "M": 12, "D": 365}
_OLDEST = 120
_SEXES = ("F", "M")
_VIEWS = ("PA", "AP")

_CITATION = """@inproceedings{wang2017chestxray8,
  title = {ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on
           Weakly-Supervised Classification and Localization of Common Thorax Diseases},
  author = {Wang, Xiaosong and Peng, Yifan and Lu, Le and Lu, Zhiyong and
            Bagheri, Mohammadhadi and Summers, Ronald M.},
  booktitle = {CVPR},
  year = {2017}
}"""


def survey_nih_cxr(
    source: str | Path, caption_style: CaptionStyle = "findings"
) -> Survey:
    """Survey a folder with NIH's images and table.

    Args:
        source: The folder.
        caption_style: "findings" names findings, view, age and sex. "binary" states
            only whether the patient has a disease, as the published system did.

    Raises:
        UserError: If the folder, images, table or columns are missing.
    """
    folder = Path(source)
    found = find_images(folder, _SUFFIXES)
    table = read_csv(_find_table(folder), _COLUMNS)
    by_stem, doubles = _by_stem(folder, found)
    entries, unmatched, damaged, without_image = _match(table, by_stem, caption_style)
    if not entries:
        first = f"; first: {damaged[0].name}: {damaged[0].reason}" if damaged else ""
        raise UserError(
            f"{folder}: none of {len(by_stem)} images has a usable row in "
            f"{table.path.name}; got {found.images[0].name}, expected names like "
            f"{table.rows[0][1]['Image Index']}{first}"
        )
    matched = {entry.image for entry in entries}
    without_row = [
        Skipped("image", shown(image, folder), f"no usable row in {table.path.name}")
        for image in by_stem.values()
        if image not in matched
    ]
    return Survey(
        name="nih_cxr",
        entries=tuple(entries),
        skipped=(*doubles, *unmatched, *without_row),
        damaged=(*found.damaged, *table.damaged, *damaged),
        counts=found.counts
        | {
            "rows_found": table.count,
            "rows_without_image": without_image,
            "images_without_row": len(without_row),
        },
        group_name="patient_id",
        label_names=LABELS,
        description="Frontal chest radiographs with findings mined from their reports.",
        licence="NIH Clinical Center: free use with attribution; see the homepage",
        citation=_CITATION,
        homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    )


def parse_age(text: str) -> int | None:
    """Return an age in whole years, or None if it is missing or over 120."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        return None
    years = int(match[1]) // _YEARS[match[2]]
    return years if years <= _OLDEST else None


def _find_table(folder: Path) -> Path:
    # The edition of 2020 sorts last. It corrects ages and views of the first edition.
    found = (path for path in folder.rglob(_TABLES) if path.is_file())
    tables = sorted(found, key=lambda path: path.name)
    if not tables:
        others = sorted(path.name for path in folder.glob("*.csv"))
        raise UserError(
            f"{folder}: no {_TABLES} found"
            f"{' (it has: ' + ', '.join(others) + ')' if others else ''}; download "
            "Data_Entry_2017_v2020.csv from NIH and put it there"
        )
    return tables[-1]


def _by_stem(folder: Path, found: Found) -> tuple[dict[str, Path], list[Skipped]]:
    """Return the first image of each stem, and the other images as skipped."""
    by_stem: dict[str, Path] = {}
    doubles: list[Skipped] = []
    for image in found.images:
        first = by_stem.setdefault(image.stem, image)
        if first is not image:
            reason = f"another file has this name: {shown(first, folder)}"
            doubles.append(Skipped("image", shown(image, folder), reason))
    return by_stem, doubles


def _match(
    table: Table, by_stem: dict[str, Path], caption_style: CaptionStyle
) -> tuple[list[Entry], list[Skipped], list[Skipped], int]:
    """Match rows and images.

    Returns:
        Entries; further rows of an image; damaged rows; number of rows without image.
    """
    entries: dict[str, Entry] = {}
    doubles: list[Skipped] = []
    damaged: list[Skipped] = []
    without_image = 0
    for line, row in table.rows:
        name = row["Image Index"]
        stem = Path(name).stem
        if fault := _fault(row):
            damaged.append(table.leave_out(line, name, fault))
        elif stem not in by_stem:
            without_image += 1
        elif stem in entries:
            doubles.append(table.leave_out(line, name, "another row for this image"))
        else:
            entries[stem] = _entry(stem, by_stem[stem], row, caption_style)
    return list(entries.values()), doubles, damaged, without_image


def _fault(row: Row) -> str:
    """Return the reason why a row cannot be used, or "" if it can."""
    for column in ("Image Index", "Finding Labels", "Patient ID"):
        if not row[column].strip():
            return f"no value for '{column}'"
    names = _names(row)
    if len(names) > 1 and NO_FINDING in names:
        return f"has '{NO_FINDING}' together with a finding"
    for name in names:
        if name not in (*LABELS, NO_FINDING):
            return f"unknown finding '{printable(name)}'{nearest(name, LABELS)}"
    return ""


def _names(row: Row) -> tuple[str, ...]:
    return tuple(name.strip() for name in row["Finding Labels"].split("|"))


def _entry(stem: str, image: Path, row: Row, caption_style: CaptionStyle) -> Entry:
    labels = tuple(name for name in _names(row) if name != NO_FINDING)
    age = parse_age(row["Patient Age"])
    patient = row["Patient ID"].strip()
    # A caption leaves unknown values out.
    sex = row["Patient Gender"] if row["Patient Gender"] in _SEXES else ""
    view = row["View Position"] if row["View Position"] in _VIEWS else ""
    return Entry(
        id=printable(stem),
        image=image,
        # The editions write a patient as 1 or as 00001.
        group=(patient.lstrip("0") or "0") if patient.isdecimal() else patient,
        text=caption(labels, view, age, sex, style=caption_style),
        labels=labels,
        attributes={
            "view": view,
            "sex": sex,
            "age": UNKNOWN_AGE if age is None else age,
        },
    )
