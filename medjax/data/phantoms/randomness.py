"""Sample random numbers whose bits are the same on every machine.

`Generator.random` and `Generator.integers` return the same bits everywhere. Normal
numbers use logarithms, which machines round differently.
"""

import numpy as np
from jaxtyping import Float32


def uniform(random: np.random.Generator, low: float, high: float) -> float:
    """Sample a number from [low, high)."""
    return low + (high - low) * random.random()


def normals(
    random: np.random.Generator, shape: tuple[int, ...]
) -> Float32[np.ndarray, "..."]:
    """Sample numbers that are approximately normal, with mean 0 and variance 1.

    Each is the sum of four uniform numbers, which are made from integers only.
    """
    parts = random.integers(0, 2**64, shape, np.uint64).view(np.uint16)
    total = parts.reshape(*shape, 4).astype(np.float32)
    total = total[..., 0] + total[..., 1] + total[..., 2] + total[..., 3]
    return total * np.float32(3**0.5 / 2**16) - np.float32(2 * 3**0.5)
