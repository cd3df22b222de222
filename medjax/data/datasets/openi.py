"""Survey Open-i's chest radiographs of Indiana University: 7,470 images, 3,955 reports.

The images may be anywhere below the source folder. The reports name them, and their
stems match them. A report has up to five images, and all of them are in one split.
Patients are unknown, so a patient with several reports may be in several splits.

Source: Demner-Fushman et al., "Preparing a collection of radiology examinations for
distribution and retrieval", JAMIA 2016.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from medjax.data.datasets.openi_reports import (
    ImageKey,
    Report,
    Reports,
    image_key,
    read_projections,
    read_reports,
)
from medjax.data.datasets.openi_source import IMAGE_SUFFIXES
from medjax.data.datasets.survey import (
    Entry,
    Found,
    Skipped,
    Survey,
    find_images,
    shown,
)
from medjax.data.report_captions import Fits, published_caption, report_caption
from medjax.errors import UserError

ReportStyle = Literal["report", "published"]

_EMPTY = "has neither findings nor impression"
_NOTE = (
    "split by report, because Open-i does not identify patients; a patient with "
    "several reports may be in several splits"
)
_CITATION = """@article{demnerfushman2016preparing,
  title = {Preparing a collection of radiology examinations for distribution and
           retrieval},
  author = {Demner-Fushman, Dina and Kohli, Marc D. and Rosenman, Marc B. and
            Shooshan, Sonya E. and Rodriguez, Laritza and Antani, Sameer and
            Thoma, George R. and McDonald, Clement J.},
  journal = {Journal of the American Medical Informatics Association},
  year = {2016}
}"""


def survey_openi(
    source: str | Path,
    fits: Fits,
    caption_style: ReportStyle = "report",
    notes: tuple[str, ...] = (),
) -> Survey:
    """Survey a folder with Open-i's images and reports.

    Args:
        source: The folder.
        fits: Function that returns whether the text encoder accepts a whole caption.
        caption_style: "report" uses as many whole sentences as fit, and begins with the
            impression. "published" is the prompt of the published system.
        notes: Notes about the archives.

    Raises:
        UserError: If the folder, reports or images are missing, or do not match.
    """
    folder = Path(source)
    found, read = find_images(folder, IMAGE_SUFFIXES), read_reports(folder)
    views, damaged_rows = read_projections(folder)
    files, doubles = _by_key(folder, found)
    entries, unmatched, lost = _match(read, files, views, fits, caption_style)
    named = {image_key(image) for report in read.reports for image in report.images}
    spare = [
        Skipped("image", shown(file, folder), "no report names it")
        for key, file in files.items()
        if key not in named
    ]
    if not entries:
        raise UserError(
            f"{folder}: none of {len(found.images)} images belongs to one of "
            f"{len(read.reports)} reports with a text; got {found.images[0].name}, "
            "expected names like CXR1_1_IM-0001-3001.png"
        )
    return Survey(
        name="openi",
        entries=tuple(entries),
        skipped=(*doubles, *read.skipped, *unmatched, *spare),
        damaged=(*found.damaged, *read.damaged, *damaged_rows),
        counts={
            "images_found": found.counts["images_found"],
            "images_missing": len(named - set(files)),
            "images_of_known_view": sum(bool(x.attributes["view"]) for x in entries),
        }
        | _counts(read)
        | dict(lost),
        group_name="report",
        notes=(_NOTE, *notes),
        description="Chest radiographs with their reports, of Indiana University.",
        licence="CC BY-NC-ND 4.0, as each report says",
        citation=_CITATION,
        homepage="https://openi.nlm.nih.gov",
    )


def _by_key(folder: Path, found: Found) -> tuple[dict[ImageKey, Path], list[Skipped]]:
    """Return the first file of each image, and the other files as skipped."""
    files: dict[ImageKey, Path] = {}
    doubles: list[Skipped] = []
    for image in found.images:
        first = files.setdefault(image_key(image.stem), image)
        if first is not image:
            reason = f"another file has this name: {shown(first, folder)}"
            doubles.append(Skipped("image", shown(image, folder), reason))
    return files, doubles


def _match(
    read: Reports,
    files: Mapping[ImageKey, Path],
    views: Mapping[ImageKey, str],
    fits: Fits,
    style: ReportStyle,
) -> tuple[list[Entry], list[Skipped], Counter[str]]:
    """Match reports and images.

    Returns:
        Entries; reports and images that cannot be used; counts of caption omissions.
    """
    owners = _owners(read.reports)
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    lost: Counter[str] = Counter()
    for report in read.reports:
        used, unused = _images(report, files, owners)
        skipped += unused
        for image, file in used.items():
            view = views.get(image_key(image), report.view)
            text, left_out = _caption(report, view, fits, style)
            # update() keeps counts of 0, too.
            lost.update(left_out)
            known = {"view": view}
            entries.append(Entry(image, file, report.id, text, attributes=known))
    return entries, skipped, lost


def _owners(reports: Iterable[Report]) -> dict[ImageKey, str]:
    """Return the report of each image: the first report that names it."""
    owners: dict[ImageKey, str] = {}
    for report in reports:
        for image in report.images:
            owners.setdefault(image_key(image), report.id)
    return owners


def _images(
    report: Report, files: Mapping[ImageKey, Path], owners: Mapping[ImageKey, str]
) -> tuple[dict[str, Path], list[Skipped]]:
    """Return the files of a report's images, and the skipped items with reasons."""
    used: dict[str, Path] = {}
    skipped: list[Skipped] = []
    if report.is_empty:
        skipped.append(Skipped("report", report.id, _EMPTY))
    if not report.images:
        skipped.append(Skipped("report", report.id, "names no image"))
    for image in report.images:
        key = image_key(image)
        if reason := _fault(report, owners[key], is_there=key in files):
            skipped.append(Skipped("image", image, reason))
        else:
            used[image] = files[key]
    return used, skipped


def _fault(report: Report, owner: str, is_there: bool) -> str:
    """Return why an image that a report names cannot be used, or "" if it can."""
    if not is_there:
        return f"its file is missing; named by report {report.id}"
    if owner != report.id:
        return f"also named by report {report.id}, but kept with {owner}"
    return f"its report {report.id} {_EMPTY}" if report.is_empty else ""


def _caption(
    report: Report, view: str, fits: Fits, style: ReportStyle
) -> tuple[str, Counter[str]]:
    """Return an image's caption, and counts of its omissions."""
    impression, findings = report.section("IMPRESSION"), report.section("FINDINGS")
    if style == "published":
        return published_caption(impression, findings, fits)
    return report_caption(impression, findings, view, fits)


def _counts(read: Reports) -> dict[str, int]:
    """Return the number of reports, and how many lack each part."""
    reports = read.reports
    return {
        "reports_found": read.count,
        "reports_without_text": sum(report.is_empty for report in reports),
        "reports_without_impression": sum(not x.section("IMPRESSION") for x in reports),
        "reports_without_findings": sum(not x.section("FINDINGS") for x in reports),
        "reports_without_images": sum(not report.images for report in reports),
    }
