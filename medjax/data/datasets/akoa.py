"""Survey slices of knee MRI from the Osteoarthritis Initiative, as in the AKOA set.

The set is one folder of PNGs, `AKOA_Analysis/`: 18,680 sagittal slices of 101 subjects.
A slice's name has all facts about it:

    OAI9062645_BaseLine_3_de3d1_SAG_3D_DESS_WE_LEFT.nii.gz_0.png

These are the subject's number in the OAI, the sequence, the side (also written `Left`
or `L_E_F_T`) and the slice. A subject has up to two knees with many slices each, which
look alike. So the split keeps a subject's slices together, and a file whose name does
not give the subject is left out.

A name of only a series and a slice, such as `fs_001.png`, is used if no file of the
folder names a subject. All such files count as one subject, who is in training, because
one subject cannot be divided.

Source: Peterfy, Schneider & Nevitt, "The osteoarthritis initiative: report on the
design rationale for the magnetic resonance imaging protocol for the knee",
Osteoarthritis and Cartilage 2008; the names are the published files'.
"""

import re
from pathlib import Path

from medjax.data.datasets.survey import Entry, Skipped, Survey, find_images, shown
from medjax.data.splits import SPLITS
from medjax.errors import UserError

UNKNOWN_SLICE = -1
"""Slice number that is stored if the name has none."""

_SUFFIXES = (".png", ".jpg", ".jpeg")
# OAI numbers its subjects from 9000000 on. Its own files omit the letters.
_SUBJECT = re.compile(r"(?:OAI[_-]?)?(9\d{6})(?!\d)", re.IGNORECASE)
_SIDE = re.compile(r"(?<![a-z])(?:(l_?e_?f_?t)|r_?i_?g_?h_?t)(?![a-z])", re.IGNORECASE)
_SLICE = re.compile(r"[_-](\d{1,6})$")
_SERIES = re.compile(r"[a-z]+[_-]\d{1,6}", re.IGNORECASE)
_EXAMPLE = "OAI9062645_BaseLine_3_de3d1_SAG_3D_DESS_WE_LEFT.nii.gz_0.png"
_ONE = "one"
_NOTE = "no file name gives a subject, so all count as one, who is in training"


def survey_akoa(source: str | Path) -> Survey:
    """Survey a folder of knee slices.

    Args:
        source: `AKOA_Analysis`, or a folder that contains it.

    Raises:
        UserError: If the folder is missing, or no name gives a subject or a series.
    """
    folder = Path(source)
    found = find_images(folder, _SUFFIXES)
    named = [image for image in found.images if _SUBJECT.match(image.stem)]
    several = bool(named)
    used = named or [x for x in found.images if _SERIES.fullmatch(x.stem)]
    if not used:
        raise UserError(
            f"{folder}: none of {len(found.images)} names contains the subject; got "
            f"{shown(found.images[0], folder)}, expected names like {_EXAMPLE}"
        )
    taken = set(used)
    reason = f"its name does not begin with the subject, as in {_EXAMPLE}"
    if not several:
        reason = "its name is not a series and a slice, as in fs_001.png"
    return Survey(
        name="oai_akoa",
        entries=tuple(_entry(image, folder) for image in used),
        skipped=tuple(
            Skipped("image", shown(image, folder), reason)
            for image in found.images
            if image not in taken
        ),
        damaged=tuple(found.damaged),
        counts=found.counts,
        group_name="subject_id",
        notes=() if several else (_NOTE,),
        description="Slices of knee MRI from the Osteoarthritis Initiative.",
        licence="OAI: for registered users, under its data use agreement",
        homepage="https://nda.nih.gov/oai",
    )


def _entry(image: Path, folder: Path) -> Entry:
    subject, slice_number = _SUBJECT.match(image.stem), _SLICE.search(image.stem)
    side = _side(image.stem)
    return Entry(
        id=shown(image, folder),
        image=image,
        group=subject[1] if subject else _ONE,
        text=_caption(side, is_sagittal=subject is not None),
        splits=SPLITS if subject else ("train",),
        attributes={
            "side": side,
            "slice": int(slice_number[1]) if slice_number else UNKNOWN_SLICE,
        },
    )


def _side(name: str) -> str:
    """Return "left" or "right", or "" if a name has neither or both."""
    sides = {"left" if match[1] else "right" for match in _SIDE.finditer(name)}
    return sides.pop() if len(sides) == 1 else ""


def _caption(side: str, is_sagittal: bool) -> str:
    plane = "sagittal MRI" if is_sagittal else "MRI"
    return f"{plane} of a {side} knee" if side else f"{plane} of a knee"
