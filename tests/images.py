"""Write small images for tests that need files."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, height: int = 12, width: int = 10, seed: int = 0) -> Path:
    """Write an image file of random pixels; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return path
