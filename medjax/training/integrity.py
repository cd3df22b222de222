"""Whether what lies on the disk is what was written: a digest of every file.

Orbax's store checks its indices but not the arrays' bytes, so a flipped bit would be
trained on. `write_checksums` runs before a checkpoint gets its final name; hence a
folder without checksums, or with other ones, is damaged.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path

from medjax.errors import UserError

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
# Orbax writes the time of the commit into these afterwards.
_VOLATILE = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 digest of every file in `folder` beside them."""
    digests = {str(file.relative_to(folder)): _digest(file) for file in _files(folder)}
    (folder / CHECKSUMS).write_text(json.dumps(digests, indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """Return what is wrong with a folder that has checksums; None if nothing is."""
    try:
        wanted = json.loads((folder / CHECKSUMS).read_text())
        for name, digest in wanted.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (ValueError, AttributeError):
        return f"{CHECKSUMS} cannot be read"
    return None


def saved_steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint in `folder`, whole or not, in order."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def set_damaged_aside(folder: Path) -> None:
    """Rename the newest checkpoints in `folder` that are damaged, up to a whole one.

    Args:
        folder: Has a folder named by its step for each checkpoint.

    Raises:
        UserError: If there are checkpoints, and none is whole.
    """
    steps = [folder / str(step) for step in saved_steps(folder)]
    reasons = []
    while steps and (reason := damage(steps[-1])):
        newest = steps.pop()
        aside = newest.with_suffix(".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        newest.rename(aside)
        reasons.append(f"{newest.name}: {reason}")
        logger.warning(
            "checkpoint %s is damaged: %s; set aside as %s", newest, reason, aside.name
        )
    if reasons and not steps:
        raise UserError(
            f"no checkpoint in {folder} is whole ({'; '.join(reasons)}); they are set "
            "aside as *.damaged: restore one from a copy, or give another --workdir to "
            "begin anew"
        )


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if path.name not in (*_VOLATILE, CHECKSUMS)]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
