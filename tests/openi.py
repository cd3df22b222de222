"""Write reports in Open-i's format, and small images in place of theirs."""

import io
import tarfile
from pathlib import Path
from xml.sax.saxutils import escape

from tests.images import write_image

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <uId id="CXR{number}"/>
   <MedlineCitation><Article><Abstract>
      <AbstractText Label="INDICATION">{indication}</AbstractText>
      <AbstractText Label="FINDINGS">{findings}</AbstractText>
      <AbstractText Label="IMPRESSION">{impression}</AbstractText>
   </Abstract></Article></MedlineCitation>
{images}
</eCitation>
"""
IMAGE = """   <parentImage id="CXR{number}_{image}">
      <caption>{caption}</caption>
   </parentImage>"""
PAIR = ("IM-0001-1001", "IM-0001-2001")


def write_report(
    folder: Path,
    number: int,
    impression: str = "No acute disease.",
    findings: str = "The heart is normal in size. The lungs are clear.",
    images: tuple[str, ...] = PAIR,
    caption: str = "PA and lateral chest",
) -> Path:
    """Write a report as in Open-i, where the number of a report is its file name."""
    file = folder / "ecgen-radiology" / f"{number}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = [IMAGE.format(number=number, image=x, caption=caption) for x in images]
    text = REPORT.format(
        number=number,
        indication="Cough",
        findings=escape(findings),
        impression=escape(impression),
        images="\n".join(parts),
    )
    file.write_text(text, encoding="utf-8")
    return file


def write_pairs(folder: Path, numbers) -> None:
    """Write reports, and both images of each."""
    for number in numbers:
        write_report(folder, number, impression=f"Finding of patient {number}.")
        for image in PAIR:
            write_image(folder / "png" / f"CXR{number}_{image}.png", seed=number)


def packed(folder: Path) -> bytes:
    """Return a .tgz of the content of a folder."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return content.getvalue()


def few_words(text: str) -> bool:
    """Replace a tokenizer: tell whether a caption has at most 50 words."""
    return len(text.split()) <= 50
