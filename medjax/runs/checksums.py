"""Whether what lies on the disk is what was written: a digest of every file.

Orbax's store checks its indices but not the arrays' bytes, so a flipped bit would be
trained on. `write_checksums` runs before a checkpoint gets its final name; hence a
folder without checksums, or with other ones, is damaged.
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
# Orbax writes the time of the commit into these afterwards.
_VOLATILE = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Bytes of files that are quick to look at.
SMALL = 2**20


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 digest of every file in `folder` beside them."""
    digests = {str(file.relative_to(folder)): _digest(file) for file in _files(folder)}
    storage.write_json(folder / CHECKSUMS, digests, indent=1)


def add_checksum(folder: Path, file: Path) -> None:
    """Add the digest of a file that came to `folder` later."""
    digests = json.loads((folder / CHECKSUMS).read_text())
    digests[str(file.relative_to(folder))] = _digest(file)
    storage.write_json(folder / CHECKSUMS, digests, indent=1)


def damage(folder: Path, largest: float = math.inf) -> str | None:
    """Return what is wrong with a folder that has checksums; None if nothing is.

    Args:
        folder: Of one checkpoint, or of anything else.
        largest: Files of more bytes need only be there.
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
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    except (ValueError, AttributeError):
        return f"{CHECKSUMS} cannot be read"
    return None


def saved_steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint in `folder`, whole or not, in order."""
    names = [path.name for path in storage.listed(folder)]
    return sorted(int(name) for name in names if name.isdigit())


def set_damaged_aside(folder: Path) -> None:
    """Rename the checkpoints in `folder` that are damaged, unless none is whole.

    Of those older than a whole one only the small files are looked at, for orbax reads
    these when it opens the folder.

    Args:
        folder: Has a folder named by its step for each checkpoint.

    Raises:
        UserError: If there are checkpoints, and none is whole.
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
            f"no checkpoint in {folder} is whole ({named}); restore one from a copy, "
            "or give another --workdir to begin anew"
        )
    for checkpoint, reason in reasons.items():
        aside = checkpoint.with_suffix(".damaged")
        storage.remove(aside)
        storage.rename(checkpoint, aside)
        logger.warning(
            "checkpoint %s is damaged: %s; set aside as %s",
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
