"""Configs that older versions stored, under today's keys.

A key that is renamed gets a row in `RENAMED`, so that older runs still resume, sample
and export.
"""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "data.phantoms": "data.phantoms.count",
    "data.phantom_kind": "data.phantoms.kind",
    "data.phantom_findings": "data.phantoms.findings",
    "data.phantom_finding_share": "data.phantoms.finding_share",
}
"""New key of each old one, as ``section.key``. The old key's value is no section."""

PACKAGED = {
    "configs/brain_vqvae.py": "brain_vqvae",
    "configs/phantom_vae.py": "phantom_vae",
}
"""Name of each config of an autoencoder that older versions named by its path."""


def migrated(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config with old keys under their new names.

    A config without old keys is returned as it is. Keys that no version had are kept,
    so that they are refused as any unknown key.

    Args:
        stored: The config, nested, as JSON gives it back.
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
    # Older versions stored the phantoms that a run on other data did not use.
    if moved and config["data"].get("root"):
        config["data"]["phantoms"] = None
    model = config.get("model", {})
    if first := model.get("autoencoder_config"):
        file, colon, variant = first.partition(":")
        model["autoencoder_config"] = f"{PACKAGED.get(file, file)}{colon}{variant}"
    return config


def _is_current(value: Any) -> bool:
    """Tell whether a value belongs to the new meaning of a key that both have."""
    return value is None or isinstance(value, dict)


def _copied(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _copied(value) if isinstance(value, Mapping) else value
        for name, value in stored.items()
    }
