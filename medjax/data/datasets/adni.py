"""Survey axial slices of brain MRI from ADNI, in the two classes of the set `AD_NC`.

    AD_NC/{train,test}/{AD,NC}/<subject>_<slice>.jpeg

The set has about 30,000 slices of 240 × 256 pixels. The class (Alzheimer's disease, or
normal control) is the folder's name. A caption has only the meaning of that name.

The published `test` stays the test split. `train` is divided by subject into training
and validation. If a subject is in both folders, all its images move to the training
split, and a note reports this. So the test split is a part of the published test split.
No subject is in both training and test.

The numbers in the published names are too long for ADNI's subject numbers, and look
like its scan numbers. If so, a subject who was scanned twice has two numbers, and names
alone cannot show this.

Source: Jack et al., "The Alzheimer's disease neuroimaging initiative (ADNI): MRI
methods", Journal of Magnetic Resonance Imaging 2008; the layout is the published set's.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from medjax.data.datasets.survey import Entry, Skipped, Survey, find_images, shown
from medjax.errors import UserError

CLASSES: Mapping[str, str] = {"AD": "Alzheimer's disease", "NC": "cognitively normal"}
"""Meaning of each class folder's name."""

_SUFFIXES = (".jpeg", ".jpg", ".png")
_NAME = re.compile(r"(?P<subject>.+)_(?P<slice>\d{1,6})")
_LEARNING, _TEST = ("train", "validation"), ("test",)
_SIDES = {"train": _LEARNING, "test": _TEST}
_LAYOUT = "{train,test}/{AD,NC}/<subject>_<slice>.jpeg"
# How many subjects a note names.
_NAMED = 5


def survey_adni(source: str | Path) -> Survey:
    """Survey a folder of brain slices.

    Args:
        source: `AD_NC`, or a folder that contains it.

    Raises:
        UserError: If the folder is missing, or no image in it has the layout.
    """
    folder = Path(source)
    found = find_images(folder, _SUFFIXES)
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    for image in found.images:
        entry = _entry(image, folder)
        if isinstance(entry, Entry):
            entries.append(entry)
        else:
            skipped.append(Skipped("image", shown(image, folder), entry))
    if not entries:
        raise UserError(
            f"{folder}: none of {len(found.images)} images has a path like {_LAYOUT}; "
            f"first: {skipped[0].name}: {skipped[0].reason}"
        )
    entries, notes = _on_one_side(entries)
    return Survey(
        name="adni",
        entries=tuple(entries),
        skipped=tuple(skipped),
        damaged=tuple(found.damaged),
        counts=found.counts,
        group_name="subject_id",
        label_names=tuple(CLASSES),
        notes=notes,
        description="Axial slices of brain MRI: Alzheimer's disease, normal controls.",
        licence="ADNI: for registered users, under its data use agreement",
        homepage="https://adni.loni.usc.edu",
    )


def _entry(image: Path, folder: Path) -> Entry | str:
    """Return the entry for an image's path, or the reason to skip the image."""
    *above, label = image.relative_to(folder).parts[:-1] or ("",)
    # Some copies have one more folder between split and class.
    sides = [part for part in above if part in _SIDES]
    name = _NAME.fullmatch(image.stem)
    if label not in CLASSES:
        return f"its folder is not named {' or '.join(CLASSES)}"
    if len(sides) != 1:
        return f"is not in exactly one folder {' or '.join(_SIDES)}, as in {_LAYOUT}"
    if name is None:
        return "its name does not give subject and slice, as in 218391_78.jpeg"
    return Entry(
        id=shown(image, folder),
        image=image,
        group=name["subject"],
        text=f"axial T1 MRI of a brain, {CLASSES[label]}",
        labels=(label,),
        splits=_SIDES[sides[0]],
        attributes={"slice": int(name["slice"])},
    )


def _on_one_side(entries: list[Entry]) -> tuple[list[Entry], tuple[str, ...]]:
    """Move subjects who are on both sides to the training side; add a note."""
    sides: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for entry in entries:
        sides[entry.group].add(entry.splits)
    both = sorted(subject for subject, found in sides.items() if len(found) > 1)
    if not both:
        return entries, ()
    moved = set(both)
    named = ", ".join(both[:_NAMED]) + (", …" if len(both) > _NAMED else "")
    note = (
        f"{len(both)} of {len(sides)} subjects are in both train and test; all their "
        f"images were moved to the training side: {named}"
    )
    return [
        dataclasses.replace(entry, splits=_LEARNING) if entry.group in moved else entry
        for entry in entries
    ], (note,)
