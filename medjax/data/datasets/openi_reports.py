"""Read the reports of Open-i's chest radiographs, published as one XML file each.

`AbstractText` holds the sections, and `parentImage` names the images. Names and dates
are blotted out in the texts as `XXXX`, with many other words ("chest x-XXXX").

All images of a report have the same caption, mostly "PA and lateral". So the caption
does not show which image is the lateral one. The images' numbers do not show it either,
because their order varies. A widely used copy of the data has a table that shows it,
`indiana_projections.csv` (columns `filename` and `projection`). The table is used if it
is among the data.
"""

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from medjax.data.datasets.survey import Skipped, find_files, shown
from medjax.data.datasets.tables import read_csv
from medjax.errors import UserError

PROJECTIONS = "indiana_projections.csv"

ImageKey = tuple[str, str]
"""Key that all names of an image share: the report's number, and ``IM-0001-3001``.

If a name has another form, the number is "" and the second part is the whole name.
"""

# CXR1_1_IM-0001-3001 in the reports; 1_IM-0001-3001.dcm in the copy with the table.
_IMAGE = re.compile(r"(?:CXR)?(\d+)_(?:\d+_)?(IM-\d+(?:-\d+)*)(?:\.dcm)?")
_FRONTAL = {"pa": "PA", "ap": "AP", "frontal": "frontal"}
# Words of captions about several views.
_SEVERAL = frozenset({"lateral", "lat", "and", "two", "2", "2v"})
_PROJECTIONS = {"Frontal": "frontal", "Lateral": "lateral"}


@dataclasses.dataclass(frozen=True)
class Report:
    """One report.

    Attributes:
        id: Name of the report, such as ``CXR1000``.
        sections: Text of each section (COMPARISON, INDICATION, FINDINGS, IMPRESSION),
            with collapsed white space. "" means an empty section.
        images: Ids of the report's images.
        view: "PA", "AP" or "frontal" if the images' caption names that view alone. ""
            means unknown.
    """

    id: str
    sections: Mapping[str, str]
    images: tuple[str, ...]
    view: str

    def section(self, name: str) -> str:
        """Return the text of a section, or "" if it is missing."""
        return self.sections.get(name, "")

    @property
    def is_empty(self) -> bool:
        """Whether both the findings and the impression are missing."""
        return not (self.section("FINDINGS") or self.section("IMPRESSION"))


@dataclasses.dataclass(frozen=True)
class Reports:
    """All reports under a folder.

    Attributes:
        reports: Reports in the order of their numbers, each once.
        damaged: Files that cannot be read or are not reports.
        skipped: Further files of a report.
        count: Number of all files.
    """

    reports: tuple[Report, ...]
    damaged: tuple[Skipped, ...]
    skipped: tuple[Skipped, ...]
    count: int


def image_key(name: str) -> ImageKey:
    """Return the key of an image, from its id or the stem of its file."""
    match = _IMAGE.fullmatch(name)
    return (match[1], match[2]) if match else ("", name)


def read_reports(folder: Path) -> Reports:
    """Read all reports under a folder.

    Raises:
        UserError: If the folder does not exist.
    """
    found = find_files(folder, (".xml",))
    reports: dict[str, Report] = {}
    damaged = [dataclasses.replace(one, what="report") for one in found.damaged]
    skipped: list[Skipped] = []
    for file in found.images:
        name = shown(file, folder)
        try:
            report = parse_report(file.read_bytes())
        except (OSError, UserError) as error:
            damaged.append(Skipped("report", name, str(error)))
            continue
        if reports.setdefault(report.id, report) is not report:
            reason = f"another file has the report {report.id}"
            skipped.append(Skipped("report", name, reason))
    count = len(found.images) + len(found.damaged)
    ordered = sorted(reports.values(), key=_order)
    return Reports(tuple(ordered), tuple(damaged), tuple(skipped), count)


def parse_report(content: bytes) -> Report:
    """Parse one XML file.

    Raises:
        UserError: If it is not XML, or not a report of Open-i.
    """
    try:
        root = ET.fromstring(content)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UserError(f"is not XML: {error}") from error
    name = root.find("uId")
    if root.tag != "eCitation" or name is None or not name.get("id"):
        raise UserError("is not a report of Open-i: no eCitation with a uId")
    sections = {
        part.get("Label", ""): _collapsed("".join(part.itertext()))
        for part in root.iter("AbstractText")
    }
    images = [part for part in root.iter("parentImage") if part.get("id")]
    captions = {_collapsed(image.findtext("caption", "")) for image in images}
    return Report(
        id=name.get("id", ""),
        sections=sections,
        # The images in order, each once.
        images=tuple(dict.fromkeys(image.get("id", "") for image in images)),
        view=view_of(captions.pop()) if len(captions) == 1 else "",
    )


def view_of(caption: str) -> str:
    """Return the view that a caption names, or "" if it names none or several."""
    said = set(re.findall(r"[a-z]+|\d+v?", caption.lower()))
    views = [view for word, view in _FRONTAL.items() if word in said]
    return views[0] if len(views) == 1 and not said & _SEVERAL else ""


def read_projections(folder: Path) -> tuple[dict[ImageKey, str], list[Skipped]]:
    """Return "frontal" or "lateral" by image, and the rows that give neither.

    Both are empty if the table is missing.

    Raises:
        UserError: If the table cannot be read or lacks a column.
    """
    tables = [x for x in find_files(folder, (".csv",)).images if x.name == PROJECTIONS]
    if not tables:
        return {}, []
    table = read_csv(tables[0], ("filename", "projection"))
    views: dict[ImageKey, str] = {}
    damaged = list(table.damaged)
    for line, row in table.rows:
        key = image_key(Path(row["filename"].strip()).stem)
        view = _PROJECTIONS.get(row["projection"].strip())
        if not key[0] or view is None:
            reason = f"expected an image of Open-i and {' or '.join(_PROJECTIONS)}"
            damaged.append(table.leave_out(line, row["filename"], reason))
        else:
            views[key] = view
    return views, damaged


def _order(report: Report) -> tuple[int, str]:
    """Return a key that sorts CXR2 before CXR10."""
    number = re.search(r"\d+", report.id)
    return int(number[0]) if number else 0, report.id


def _collapsed(text: str) -> str:
    return " ".join(text.split())
