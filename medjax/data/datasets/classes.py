"""Labels of images by the folders that they lie in.

The classes are the folders directly below the one that holds all images: both in
`beagle/1.jpg` and in `Images/beagle/1.jpg`, and also in `beagle/anna/1.jpg`, the class
is `beagle`.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from medjax.data.datasets.survey import Entry, Skipped, Survey, shown
from medjax.errors import UserError

_REASON = "lies in no class's folder"
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test"))


def with_classes(survey: Survey, folder: Path) -> Survey:
    """Return a survey whose images have the classes' folders as labels.

    Images beside those folders have no class, and are left out.

    Args:
        survey: Of a folder.
        folder: The folder.

    Raises:
        UserError: If there are not at least two classes, or they are splits.
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
            f"--classes_from_folders: {folder} has {', '.join(names) or 'no folder'} "
            f"as the only class, as {shown(survey.entries[0].image, folder)} lies; "
            "expected a folder for each class: --source=CLASSES with CLASSES/NAME/*.png"
        )
    if _SPLITS.issuperset(name.lower() for name in names):
        raise UserError(
            f"--classes_from_folders: the folders in {top} are {', '.join(names)}, "
            "which are no classes but splits; expected the folder of one of them, as "
            f"--source={top / names[0]}: medjax.prepare splits by itself"
        )
    return dataclasses.replace(
        survey,
        entries=tuple(labelled),
        skipped=(*survey.skipped, *skipped),
        label_names=tuple(names),
    )


def _top(images: Sequence[Path]) -> Path:
    """Return the innermost folder that all images lie in."""
    return Path(os.path.commonpath([image.parent for image in images]))
