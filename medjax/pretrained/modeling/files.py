"""Loading the weights, and conversion of images from and to bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def load(folder: str | Path) -> Any:
    """Return the model of an export, in float32, with the weights of its file."""
    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    model: nn.Module = build(config)
    weights = load_file(Path(folder) / "model.safetensors")
    model.load_state_dict({name: one.float() for name, one in weights.items()})
    return model.eval().requires_grad_(False)


def build(config: dict[str, Any]) -> Any:
    """Return the network that a part of ``config.json`` describes.

    The value of the key ``class`` is the name of its class; the others are the class's
    arguments. An argument with the key ``class`` is a network, too.
    """
    fields = {
        name: build(value) if isinstance(value, dict) and "class" in value else value
        for name, value in config.items()
    }
    return globals()[fields.pop("class")](**fields)


def to_pixels(images: Tensor) -> np.ndarray:
    """Return images (b c H W) in [-1, 1] as bytes: (b H W) if gray, or (b H W 3)."""
    levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(1, -1).squeeze(-1).cpu().numpy()


def from_pixels(pixels: np.ndarray) -> Tensor:
    """Return bytes, (b H W) or (b H W 3), as images (b c H W) in [-1, 1]."""
    images = torch.from_numpy(np.array(pixels, np.float32)) / 127.5 - 1
    return images[:, None] if images.ndim == 3 else images.movedim(-1, 1)
