"""Label images by the names of their folders.

The classes are the folders directly below the innermost folder that holds all images.
In `beagle/1.jpg`, `Images/beagle/1.jpg` and `beagle/anna/1.jpg`, the class is `beagle`.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from medjax.data.datasets.survey import Entry, Skipped, Survey, shown
from medjax.errors import UserError

_REASON = "is not in the folder of a class"
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test"))


def with_classes(survey: Survey, folder: Path) -> Survey:
    """Return a survey whose images are labelled with the names of class folders.

    Images outside those folders have no class and are left out.

    Args:
        survey: Survey of a folder.
        folder: The folder.

    Raises:
        UserError: If fewer than two classes are found, or the classes are splits.
    """
    top = _top([entry.image for entry in survey.entries])
    labelled: list[Entry] = []
    skipped: list[Skipped] = []
    for entry in survey.entries:
        first, *below = entry.image.relative_to(top).parts
        if below:
            label = shown(top / first, top)
            labelled.append(dataclasses.replace(entry, labels=(label,)))
        else:
            skipped.append(Skipped("image", entry.id, _REASON))
    names = sorted({name for entry in labelled for name in entry.labels})
    if len(names) < 2:
        raise UserError(
            f"--classes_from_folders: {folder} has fewer than two classes: "
            f"{', '.join(names) or 'no folder'} (first image: "
            f"{shown(survey.entries[0].image, folder)}); expected a folder for each "
            "class: --source=CLASSES with CLASSES/NAME/*.png"
        )
    if _SPLITS.issuperset(name.lower() for name in names):
        raise UserError(
            f"--classes_from_folders: the folders in {top} are {', '.join(names)}, "
            "which are splits, not classes; set the source to one of them, such as "
            f"--source={top / names[0]}, because medjax prepare makes the splits"
        )
    return dataclasses.replace(
        survey,
        entries=tuple(labelled),
        skipped=(*survey.skipped, *skipped),
        label_names=tuple(names),
    )


def _top(images: Sequence[Path]) -> Path:
    """Return the innermost folder that contains all images."""
    return Path(os.path.commonpath([image.parent for image in images]))
