"""Find the prepared data set at `config.data.root`, or explain what the folder has."""

from pathlib import Path

from medjax import storage
from medjax.data.readers import SUFFIXES
from medjax.errors import UserError

INFO = "dataset_info.json"
"""File that marks a folder as a TFDS data set."""

# TFDS puts a data set in <root>/<name>/<version>, or one folder deeper with a config.
_PLACES = ("", "*/", "*/*/", "*/*/*/")


def find_prepared(root: str | Path) -> list[Path]:
    """Return the folders below `root` that hold a complete TFDS data set.

    An unfinished data set is in a hidden folder and is not found, even if the process
    that wrote it was killed. The data set that it was about to replace is found.
    """
    folder = Path(root).expanduser()
    found = {path.parent for place in _PLACES for path in folder.glob(place + INFO)}
    return sorted(
        path
        for path in found
        if not any(
            storage.is_leftover(place)
            for place in (path, *path.parents)
            if place != folder and place.is_relative_to(folder)
        )
    )


def find_dataset(root: str | Path) -> Path:
    """Return the folder of the one complete data set at or below `root`.

    Raises:
        UserError: If none or more than one is found.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        what = "is a file, expected a folder" if folder.exists() else "no such folder"
        raise UserError(
            f"config.data.root={root}: {what}; {_prepare('IMAGES', root)}, or set it "
            "to '' for phantoms"
        )
    found = find_prepared(folder)
    if not found:
        raise UserError(f"config.data.root={root}: {_not_prepared(folder)}")
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise UserError(
            f"config.data.root={root}: several data sets; choose one: {names}"
        )
    return found[0]


def _not_prepared(folder: Path) -> str:
    """Describe a folder without a data set, and how to prepare data."""
    content = [path.name for path in storage.listed(folder)]
    if not content:
        return f"is empty; {_prepare('IMAGES', folder)}"
    if any(name.startswith(".incomplete") for name in content):
        return "has a part of an interrupted medjax prepare; run that again"
    # The search stops at the first image, because folders may be large.
    if any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*")):
        return f"holds images that are not prepared; {_prepare(folder, 'PREPARED')}"
    listed = ", ".join(content[:5]) + (", …" if content[5:] else "")
    return f"no prepared data set, only {listed}; {_prepare('IMAGES', 'PREPARED')}"


def _prepare(source: str | Path, out: str | Path) -> str:
    return (
        f"make a data set with medjax prepare --dataset=folder "
        f"--source={source} --out={out}"
    )
