"""Convert configs that older versions stored to today's keys.

When a key is renamed, it gets a row in `RENAMED`; when its values are, a row in
`REPLACED`. Older runs can then still resume, sample and export.
"""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "data.phantoms": "data.phantoms.count",
    "data.phantom_kind": "data.phantoms.kind",
    "data.phantom_findings": "data.phantoms.findings",
    "data.phantom_finding_share": "data.phantoms.finding_share",
}
"""New key of each old key, as ``section.key``. Old values are not sections."""

REPLACED = {"model.remat": {True: "full", False: "none"}}
"""New value of each old value, for each key that kept its name (``section.key``)."""

PACKAGED = {
    "configs/brain_vqvae.py": "brain_vqvae",
    "configs/phantom_vae.py": "phantom_vae",
}
"""Names of the autoencoder configs that older versions stored as paths."""


def migrated(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config with its old keys renamed.

    A config without old keys is returned unchanged. Keys that no version had are kept,
    so that parsing fails with the error for unknown keys.

    Args:
        stored: The config, as a nested dict from JSON.
    """
    config = _copied(stored)
    moved = {}
    for old, new in RENAMED.items():
        section, _, name = old.partition(".")
        keys = config.get(section, {})
        if name in keys and not _is_current(keys[name]):
            moved[new] = keys.pop(name)
    for new, value in moved.items():
        *sections, name = new.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    for key, values in REPLACED.items():
        section, _, name = key.partition(".")
        keys = config.get(section, {})
        if isinstance(keys.get(name), bool):
            keys[name] = values[keys[name]]
    # Older versions stored settings of phantoms even if the run used other data.
    if moved and config["data"].get("root"):
        config["data"]["phantoms"] = None
    model = config.get("model", {})
    if first := model.get("autoencoder_config"):
        file, colon, variant = first.partition(":")
        model["autoencoder_config"] = f"{PACKAGED.get(file, file)}{colon}{variant}"
    return config


def _is_current(value: Any) -> bool:
    """Return whether a value has the new meaning of a key that both versions have."""
    return value is None or isinstance(value, dict)


def _copied(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _copied(value) if isinstance(value, Mapping) else value
        for name, value in stored.items()
    }
