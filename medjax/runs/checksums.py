"""Detect damaged files by checksums: write and compare a digest of every file.

Orbax's store checks its indices, but not the bytes of the arrays. Without checksums, a
run could therefore train on a flipped bit. `write_checksums` runs before a checkpoint
gets its final name. So a folder is damaged if its checksums are missing or differ.
"""

import hashlib
import json
import logging
import math
from pathlib import Path

from medjax import storage
from medjax.errors import UserError

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
# Orbax writes the time of the commit into these files after the checksums.
_VOLATILE = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Size in bytes up to which a file is quick to check.
SMALL = 2**20


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 digest of every file in `folder` to its `checksums.json`."""
    digests = {str(file.relative_to(folder)): _digest(file) for file in _files(folder)}
    storage.write_json(folder / CHECKSUMS, digests, indent=1)


def add_checksum(folder: Path, file: Path) -> None:
    """Add the digest of a file that was written to `folder` later."""
    digests = json.loads((folder / CHECKSUMS).read_text())
    digests[str(file.relative_to(folder))] = _digest(file)
    storage.write_json(folder / CHECKSUMS, digests, indent=1)


def damage(folder: Path, largest: float = math.inf) -> str | None:
    """Return a description of the damage to a folder; None if it is intact.

    Args:
        folder: A folder with checksums, for example of a checkpoint.
        largest: Size in bytes up to which the content of files is checked. Larger
            files only have to exist.
    """
    name = CHECKSUMS
    try:
        wanted = json.loads((folder / CHECKSUMS).read_text())
        if not wanted:
            return f"{CHECKSUMS} lists no file"
        for name, digest in wanted.items():
            if (folder / name).stat().st_size > largest:
                continue
            if _digest(folder / name) != digest:
                return f"{name} does not match its checksum"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    except (ValueError, AttributeError):
        return f"{CHECKSUMS} cannot be read"
    return None


def saved_steps(folder: Path) -> list[int]:
    """Return the steps with a checkpoint in `folder`, intact or not, in order."""
    names = [path.name for path in storage.listed(folder)]
    return sorted(int(name) for name in names if name.isdigit())


def set_damaged_aside(folder: Path) -> None:
    """Rename the damaged checkpoints in `folder` to `STEP.damaged`.

    If a checkpoint is older than an intact one, only its small files are checked,
    because orbax reads these when it opens the folder.

    Args:
        folder: Folder with one subfolder for each checkpoint, named by its step.

    Raises:
        UserError: If checkpoints exist, and all are damaged. Nothing is renamed.
    """
    reasons: dict[Path, str] = {}
    whole = False
    for step in reversed(saved_steps(folder)):
        checkpoint = folder / str(step)
        if reason := damage(checkpoint, SMALL if whole else math.inf):
            reasons[checkpoint] = reason
        else:
            whole = True
    if reasons and not whole:
        named = "; ".join(f"{path.name}: {reason}" for path, reason in reasons.items())
        raise UserError(
            f"all checkpoints in {folder} are damaged ({named}). Restore one from a "
            "backup, or use another --workdir to start a new run"
        )
    for checkpoint, reason in reasons.items():
        aside = checkpoint.with_suffix(".damaged")
        storage.remove(aside)
        storage.rename(checkpoint, aside)
        logger.warning(
            "checkpoint %s is damaged: %s; renamed to %s",
            checkpoint,
            reason,
            aside.name,
        )


def _files(folder: Path) -> list[Path]:
    found = sorted(storage.files_below(folder))
    return [path for path in found if path.name not in (*_VOLATILE, CHECKSUMS)]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
