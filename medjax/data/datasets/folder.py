"""Any folder of images, with or without captions.

Captions stand in `metadata.csv` or `metadata.jsonl` at the top of the folder, one row
an image: `file_name` (relative to the folder), `text`, and, if wanted,
`conditioning_image` (the file of a ready-made control) and a column to split by. This
is the layout of Hugging Face's image folders. Without such a file every image is taken,
with an empty caption.
"""

from collections import Counter
from pathlib import Path

from medjax.data.datasets.survey import (
    Entry,
    Row,
    Skipped,
    Survey,
    find_images,
    read_csv,
    read_jsonl,
    require_columns,
)
from medjax.data.readers import SUFFIXES
from medjax.errors import UserError

_READERS = {"metadata.csv": read_csv, "metadata.jsonl": read_jsonl}
_NO_ROW, _NO_FILE = "no row in {}", "its file does not exist"


def survey_folder(source: str | Path, group_column: str = "") -> Survey:
    """Look over a folder of images.

    Args:
        source: The folder.
        group_column: Column whose values the split keeps together; "" puts every image
            in a group of its own.

    Raises:
        UserError: If folder, images, rows or columns are missing.
    """
    folder = Path(source)
    images = find_images(folder, SUFFIXES)
    tables = [name for name in _READERS if (folder / name).is_file()]
    if len(tables) > 1:
        raise UserError(f"{folder}: has {' and '.join(tables)}; keep one of them")
    if not tables:
        return _without_captions(folder, images, group_column)
    path = folder / tables[0]
    return _with_captions(folder, images, path, _READERS[path.name](path), group_column)


def _without_captions(folder: Path, images: list[Path], group_column: str) -> Survey:
    if group_column:
        raise UserError(
            f"--group_column={group_column}: {folder} has no {' or '.join(_READERS)}, "
            "so no columns"
        )
    names = [image.relative_to(folder).as_posix() for image in images]
    entries = tuple(
        Entry(id=name, image=image, group=name)
        for name, image in zip(names, images, strict=True)
    )
    return _survey(folder, entries, (), {"images_found": len(images)})


def _with_captions(
    folder: Path, images: list[Path], path: Path, rows: list[Row], group_column: str
) -> Survey:
    wanted = ["file_name", "text", *([group_column] if group_column else [])]
    require_columns(rows, path, wanted)
    controlled = any("conditioning_image" in row for row in rows)
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    seen: Counter[str] = Counter()
    for row in rows:
        name = Path(row["file_name"]).as_posix()
        control = row.get("conditioning_image", "")
        reason = _fault(folder, name, control, controlled)
        if reason:
            skipped.append(Skipped(name, reason))
            continue
        seen[name] += 1
        # An image may have several captions, each in its own row.
        suffix = f"#{seen[name]}" if seen[name] > 1 else ""
        entries.append(
            Entry(
                id=name + suffix,
                image=folder / name,
                group=row[group_column] if group_column else name,
                text=row["text"],
                conditioning_image=folder / control if controlled else None,
            )
        )
    used = {entry.image for entry in entries}
    used |= {e.conditioning_image for e in entries if e.conditioning_image}
    used |= {folder / skip.name for skip in skipped}
    spare = tuple(
        Skipped(image.relative_to(folder).as_posix(), _NO_ROW.format(path.name))
        for image in images
        if image not in used
    )
    counts = {"images_found": len(images), "rows_found": len(rows)}
    skips = (*skipped, *spare)
    return _survey(folder, tuple(entries), skips, counts)


def _fault(folder: Path, name: str, control: str, controlled: bool) -> str:
    """Return why a row cannot be used, or ""."""
    if not (folder / name).is_file():
        return _NO_FILE
    if controlled and not control:
        return "no conditioning_image, though other rows have one"
    if controlled and not (folder / control).is_file():
        return f"its conditioning_image {control} does not exist"
    return ""


def _survey(
    folder: Path,
    entries: tuple[Entry, ...],
    skipped: tuple[Skipped, ...],
    counts: dict[str, int],
) -> Survey:
    if not entries:
        raise UserError(
            f"{folder}: no row names an image that exists; first: {skipped[0].name}: "
            f"{skipped[0].reason}"
        )
    return Survey(
        name="folder",
        entries=entries,
        skipped=skipped,
        counts=counts,
        description=f"Images of the folder '{folder.resolve().name}'.",
    )
