"""Turn optical depth into gray values: the detector's blur and noise, and the film.

The gray value is a function of the depth tau. It is bright where the body is dense:

    v = (1 + t / sqrt(1 + t²)) / 2,   t = (tau - tau_0) / w                    (1)

The quantum noise of tau has the standard deviation exp(tau / 2) / sqrt(n). Here n is
the number of quanta in a pixel without a body.
"""

import numpy as np
from jaxtyping import UInt8

from medjax.data.phantoms.chest.parameters import ChestParameters
from medjax.data.phantoms.poses import Image
from medjax.data.phantoms.randomness import normals

_QUANTA_PER_CM2 = 3.0e6
_BLUR_CM = 0.05
_WIDTH = 1.1


def expose(
    depth: Image, parameters: ChestParameters, pixel_cm: float
) -> UInt8[np.ndarray, "h w"]:
    """Return the radiograph of an optical depth.

    Args:
        depth: Mean optical depth over each pixel.
        parameters: Parameters. Habitus and exposure set tau_0 in equation (1).
        pixel_cm: Side of a pixel on the detector, in cm.
    """
    depth = _blur(depth, (_BLUR_CM / pixel_cm) ** 2)
    depth = depth + _noise(depth, parameters.texture_seed, pixel_cm)
    return _display(depth, parameters)


def _blur(image: Image, variance: float) -> Image:
    """Convolve the image with a binomial of this variance, in pixels²."""
    # A pass with weights (a, 1 - 2 a, a) has the variance 2 a, at most 1/2.
    passes = max(1, int(np.ceil(2 * variance)))
    a = np.float32(variance / 2 / passes)
    for _ in range(passes):
        for axis in (0, 1):
            padded = np.pad(
                image, [(1, 1) if axis == i else (0, 0) for i in (0, 1)], mode="edge"
            )
            before, after = (
                np.split(padded, [2], axis)[1],
                np.split(padded, [-2], axis)[0],
            )
            image = image * (1 - 2 * a) + a * (before + after)
    return image


def _noise(depth: Image, seed: int, pixel_cm: float) -> Image:
    """Return quantum noise of the depth. exp is its series up to the third power."""
    random = np.random.default_rng((seed, 2))
    half = depth * np.float32(0.5)
    growth = 1 + half * (1 + half * (np.float32(1 / 2) + half * np.float32(1 / 6)))
    return (
        normals(random, depth.shape)
        * growth
        * np.float32(1 / (_QUANTA_PER_CM2 * pixel_cm**2) ** 0.5)
    )


def _display(depth: Image, parameters: ChestParameters) -> UInt8[np.ndarray, "h w"]:
    """Return equation (1) as gray values. The patient's thickness sets the exposure."""
    middle = 1.95 + 0.5 * parameters.habitus + 0.25 * parameters.exposure
    t = (depth - np.float32(middle)) * np.float32(1 / _WIDTH)
    value = np.float32(127.5) * (1 + t / np.sqrt(1 + t * t))
    return (value + np.float32(0.5)).astype(np.uint8)
