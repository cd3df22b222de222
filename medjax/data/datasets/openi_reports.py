"""The reports of Open-i's chest radiographs, as published: one XML file each.

`AbstractText` holds the sections, `parentImage` names the images. Names and dates are
blotted out in the texts as `XXXX`, and with them many other words ("chest x-XXXX").

The caption of an image is the same for all of a report's, "PA and lateral" mostly, so
which of them is the lateral one cannot be told from it; nor from the images' numbers,
whose order varies. A table `indiana_projections.csv`, as a widely used copy of the data
has it (columns `filename` and `projection`), tells, where it lies among the data.
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
"""What all names of an image share: the report's number, and ``IM-0001-3001``.

The number is "" where a name is not made like that; then the other is all of it.
"""

# CXR1_1_IM-0001-3001 in the reports; 1_IM-0001-3001.dcm in the copy with the table.
_IMAGE = re.compile(r"(?:CXR)?(\d+)_(?:\d+_)?(IM-\d+(?:-\d+)*)(?:\.dcm)?")
_FRONTAL = {"pa": "PA", "ap": "AP", "frontal": "frontal"}
# Of captions that are about several views.
_SEVERAL = frozenset({"lateral", "lat", "and", "two", "2", "2v"})
_PROJECTIONS = {"Frontal": "frontal", "Lateral": "lateral"}


@dataclasses.dataclass(frozen=True)
class Report:
    """One report.

    Attributes:
        id: Its name: ``CXR1000``.
        sections: Text by section (COMPARISON, INDICATION, FINDINGS, IMPRESSION), white
            space collapsed; "" where it is empty.
        images: The ids of its images.
        view: "PA", "AP" or "frontal" where the images' caption tells of that view
            alone, else "".
    """

    id: str
    sections: Mapping[str, str]
    images: tuple[str, ...]
    view: str

    def section(self, name: str) -> str:
        """Return the text of a section; "" where there is none."""
        return self.sections.get(name, "")

    @property
    def is_empty(self) -> bool:
        """Whether it has neither findings nor impression."""
        return not (self.section("FINDINGS") or self.section("IMPRESSION"))


@dataclasses.dataclass(frozen=True)
class Reports:
    """All reports under a folder.

    Attributes:
        reports: Each once, in the order of their numbers.
        damaged: Files that cannot be read, or are no report.
        skipped: Second files of a report.
        count: Number of all files.
    """

    reports: tuple[Report, ...]
    damaged: tuple[Skipped, ...]
    skipped: tuple[Skipped, ...]
    count: int


def image_key(name: str) -> ImageKey:
    """Return what identifies an image, from its id or its file's stem."""
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
    """Return what one XML file says.

    Raises:
        UserError: If it is no XML, or no report of Open-i.
    """
    try:
        root = ET.fromstring(content)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UserError(f"is no XML: {error}") from error
    name = root.find("uId")
    if root.tag != "eCitation" or name is None or not name.get("id"):
        raise UserError("is no report of Open-i: no eCitation with a uId")
    sections = {
        part.get("Label", ""): _collapsed("".join(part.itertext()))
        for part in root.iter("AbstractText")
    }
    images = [part for part in root.iter("parentImage") if part.get("id")]
    captions = {_collapsed(image.findtext("caption", "")) for image in images}
    return Report(
        id=name.get("id", ""),
        sections=sections,
        # In their order, each once.
        images=tuple(dict.fromkeys(image.get("id", "") for image in images)),
        view=view_of(captions.pop()) if len(captions) == 1 else "",
    )


def view_of(caption: str) -> str:
    """Return the view that a caption tells of, or "" for none or several."""
    said = set(re.findall(r"[a-z]+|\d+v?", caption.lower()))
    views = [view for word, view in _FRONTAL.items() if word in said]
    return views[0] if len(views) == 1 and not said & _SEVERAL else ""


def read_projections(folder: Path) -> tuple[dict[ImageKey, str], list[Skipped]]:
    """Return "frontal" or "lateral" by image, and the rows that tell neither.

    Both are empty where there is no table.

    Raises:
        UserError: If there is one that cannot be read, or has not its columns.
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
    """Sort CXR2 before CXR10."""
    number = re.search(r"\d+", report.id)
    return int(number[0]) if number else 0, report.id


def _collapsed(text: str) -> str:
    return " ".join(text.split())
