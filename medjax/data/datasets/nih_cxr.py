"""NIH ChestX-ray14, as published: 112,120 frontal chest radiographs, 30,805 patients.

The images may lie anywhere below the source folder (`images/`, `images_001/images/`,
...), at any resolution and as PNG or JPEG: they are matched to the rows of
`Data_Entry_2017*.csv` by their stem.

Source: Wang et al., "ChestX-ray8: hospital-scale chest X-ray database and benchmarks",
CVPR 2017.
"""

import re
from pathlib import Path

from medjax.data.captions import FINDING_NAMES, NO_FINDING, CaptionStyle, caption
from medjax.data.datasets.survey import (
    Entry,
    Row,
    Skipped,
    Survey,
    find_images,
    read_csv,
    require_columns,
)
from medjax.errors import UserError

LABELS = tuple(FINDING_NAMES)
UNKNOWN_AGE = -1
"""What is stored as the age in years where it is missing or cannot be true."""

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
# The first edition writes 058Y, 013M, 002D; it and the second have ages up to 414.
_AGE = re.compile(r"(\d+)([YMD]?)")
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
    """Look over a folder with NIH's images and table.

    Args:
        source: The folder.
        caption_style: "findings" names findings, view, age and sex; "binary" says only
            whether there is a disease, as the published system did.

    Raises:
        UserError: If folder, images, table or columns are missing.
    """
    folder = Path(source)
    images = find_images(folder, _SUFFIXES)
    table = _find_table(folder)
    rows = read_csv(table)
    require_columns(rows, table, _COLUMNS)
    by_stem: dict[str, Path] = {}
    skipped: list[Skipped] = []
    for image in images:
        first = by_stem.setdefault(image.stem, image)
        if first is not image:
            reason = f"another file of this name: {first.relative_to(folder)}"
            skipped.append(Skipped(str(image.relative_to(folder)), reason))
    entries, without_image = _match(rows, by_stem, caption_style, table)
    matched = {entry.id for entry in entries}
    without_row = [image for stem, image in by_stem.items() if stem not in matched]
    skipped += [
        Skipped(str(image.relative_to(folder)), f"no row in {table.name}")
        for image in without_row
    ]
    if not entries:
        raise UserError(
            f"{folder}: none of {len(by_stem)} images has a row in {table.name}; "
            f"got {images[0].name}, expected names like {rows[0]['Image Index']}"
        )
    return Survey(
        name="nih_cxr",
        entries=tuple(entries),
        skipped=tuple(skipped),
        counts={
            "images_found": len(images),
            "rows_found": len(rows),
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
    """Return an age in whole years, or None where it is missing or over 120."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        return None
    years = int(match[1]) // _YEARS[match[2]]
    return years if years <= _OLDEST else None


def _find_table(folder: Path) -> Path:
    # The edition of 2020 sorts last, and corrects the first one's ages and views.
    tables = sorted(folder.rglob(_TABLES), key=lambda path: path.name)
    if not tables:
        others = sorted(path.name for path in folder.glob("*.csv"))
        raise UserError(
            f"{folder}: no {_TABLES} found"
            f"{' (it has: ' + ', '.join(others) + ')' if others else ''}; download "
            "Data_Entry_2017_v2020.csv from NIH and put it there"
        )
    return tables[-1]


def _match(
    rows: list[Row],
    by_stem: dict[str, Path],
    caption_style: CaptionStyle,
    table: Path,
) -> tuple[list[Entry], int]:
    """Return an entry for every row that has an image, and how many have none."""
    entries: dict[str, Entry] = {}
    without_image = 0
    for row in rows:
        stem = Path(row["Image Index"]).stem
        if stem not in by_stem:
            without_image += 1
        elif stem not in entries:
            entries[stem] = _entry(stem, by_stem[stem], row, caption_style, table)
    return list(entries.values()), without_image


def _entry(
    stem: str,
    image: Path,
    row: Row,
    caption_style: CaptionStyle,
    table: Path,
) -> Entry:
    labels = _labels(row, table)
    age = parse_age(row["Patient Age"])
    patient = row["Patient ID"]
    # What a caption cannot say, it leaves out.
    sex = row["Patient Gender"] if row["Patient Gender"] in _SEXES else ""
    view = row["View Position"] if row["View Position"] in _VIEWS else ""
    return Entry(
        id=stem,
        image=image,
        # The editions write a patient as 1 or as 00001.
        group=str(int(patient)) if patient.isdigit() else patient,
        text=caption(labels, view, age, sex, style=caption_style),
        labels=labels,
        attributes={
            "view": view,
            "sex": sex,
            "age": UNKNOWN_AGE if age is None else age,
        },
    )


def _labels(row: Row, table: Path) -> tuple[str, ...]:
    """Return the findings of a row; none for "No Finding"."""
    names = tuple(name.strip() for name in row["Finding Labels"].split("|"))
    found = tuple(name for name in names if name != NO_FINDING)
    for name in found:
        if name not in LABELS:
            raise UserError(
                f"{table}: {row['Image Index']} has the finding '{name}'; expected "
                f"{NO_FINDING} or some of {', '.join(LABELS)}, joined by |"
            )
    return found
