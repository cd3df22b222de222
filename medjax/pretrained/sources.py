"""Find the local file or folder of a source: a path, or the cache of a hub id.

The hub's own conventions apply: its cache (``HF_HOME``), its token (``hf auth login``
or ``HF_TOKEN``) and its offline switch (``HF_HUB_OFFLINE``).
"""

import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from medjax import texts
from medjax.errors import UserError

logger = logging.getLogger(__name__)


# Endings of single files with a whole model. Other names are folders or ids.
SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")

PHANTOM_SD = "phantom-sd"
"""The small Stable Diffusion of computed chests that comes with medjax."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_BUILT_IN = {PHANTOM_SD: Path(__file__).with_name("phantom_sd")}


def built_in(source: str | Path) -> bool:
    """Tell whether `source` names weights that come with medjax."""
    return str(source) in _BUILT_IN


def public_name(source: str | Path) -> str:
    """Return a name of `source` without its path on this machine.

    The name of a hub id is the id. The name of weights that come with medjax is their
    folder in the repository.
    """
    place = _BUILT_IN.get(str(source))
    if place is not None:
        return f"medjax/pretrained/{place.name}"
    return hub_id(str(source)) or Path(source).name


def hub_id(source: str) -> str | None:
    """Return `source` if it has the form of a hub id and is not a local path."""
    hub = _HUB_ID.fullmatch(source) and not local_place(source).exists()
    return source if hub else None


def local_place(source: str | Path) -> Path:
    """Return the path of `source`, or the folder of weights that come with medjax."""
    return _BUILT_IN.get(str(source)) or Path(source).expanduser()


def local_file(source: str | Path) -> Path | None:
    """Return the file that `source` names, or None for a folder or an id.

    Raises:
        UserError: If it has the suffix of a file, but no such file or folder exists.
    """
    file = local_place(source)
    if file.is_file():
        return file
    if file.suffix in SUFFIXES and not file.is_dir():
        raise UserError(f"'{source}' is missing. Expected a file, folder or hub id")
    return None


def local_folder(
    source: str | Path,
    attempts: Iterable[list[str]],
    enough: Callable[[Path], bool],
) -> Path:
    """Return the folder that `source` names; download it from the hub if necessary.

    Args:
        source: A folder, an id on the hub such as ``owner/name``, or `PHANTOM_SD`.
        attempts: Lists of file patterns to download. Each list is tried only if the
            files of the earlier ones are not enough.
        enough: Function that returns whether a folder contains the required files.

    Raises:
        UserError: If the folder does not exist and cannot be downloaded.
    """
    folder = local_place(source)
    if folder.is_dir():
        return folder
    for patterns in attempts:
        folder = _download(str(source), patterns)
        if enough(folder):
            break
    return folder


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a configuration file.

    Raises:
        UserError: If it is missing or not a JSON object.
    """
    if not file.is_file():
        for folder in file.parents[:2]:
            if (folder / "pytorch_lora_weights.safetensors").is_file():
                raise UserError(
                    f"{folder} contains only adapters (LoRA). Expected a whole model; "
                    "medjax export --format=pipeline writes one from a run and its base"
                )
        raise UserError(
            f"{file} is missing. Expected a folder in the diffusers layout, as written "
            "by diffusers' save_pretrained"
        )
    try:
        content = json.loads(texts.read_text(file))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except errors.HFValidationError as error:
        reason = "and it is not a hub id, which has the form owner/name"
        cause: Exception = error
    except errors.GatedRepoError as error:
        reason = (
            "and on the hub its owner requires you to accept terms: accept them on "
            f"https://huggingface.co/{name}, then log in with 'hf auth login'"
        )
        cause = error
    except errors.RepositoryNotFoundError as error:
        reason = (
            "and the hub has no such id, or it is private: log in with 'hf auth login' "
            "or set HF_TOKEN"
        )
        cause = error
    # Without a connection, the hub's client raises its own errors, those of the
    # operating system, or those of its HTTP library.
    except Exception as error:
        why = first_line(error)
        if isinstance(error, errors.LocalEntryNotFoundError):
            why = "HF_HUB_OFFLINE is set"
            if not HF_HUB_OFFLINE:
                why = f"{ENDPOINT} does not answer: {first_line(innermost(error))}"
        reason = (
            "and as a hub id it is not in the local cache and cannot be downloaded "
            f"({why}). Connect to the network, or give a folder in the diffusers "
            "layout; private ids require 'hf auth login'"
        )
        cause = error
    raise UserError(f"cannot load '{name}': no such local folder, {reason}") from cause


def innermost(error: BaseException) -> BaseException:
    """Return the first error of a chain of causes."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without its full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
