"""Random numbers whose bits are the same on every machine.

`Generator.random` and `Generator.integers` are; normal numbers go through logarithms,
which are not rounded alike everywhere.
"""

import numpy as np
from jaxtyping import Float32


def uniform(random: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between two."""
    return low + (high - low) * random.random()


def normals(
    random: np.random.Generator, shape: tuple[int, ...]
) -> Float32[np.ndarray, "..."]:
    """Draw numbers of mean 0 and variance 1 that are normal, near enough.

    Each is the sum of four uniform ones, made from integers alone.
    """
    parts = random.integers(0, 2**64, shape, np.uint64).view(np.uint16)
    total = parts.reshape(*shape, 4).astype(np.float32)
    total = total[..., 0] + total[..., 1] + total[..., 2] + total[..., 3]
    return total * np.float32(3**0.5 / 2**16) - np.float32(2 * 3**0.5)
