"""Find Canny edges, the condition for ControlNets of radiographs.

OpenCV's Canny is the default, because `control_sd15_canny` was trained on its edges.
scikit-image's Canny is the alternative. It measures the gradient by the L2 norm, and
OpenCV by the L1 norm. At equal thresholds, scikit-image finds somewhat fewer edges.

Source: Canny, "A computational approach to edge detection", PAMI 1986.
"""

from typing import Literal

import numpy as np
from jaxtyping import UInt8

CannyBackend = Literal["opencv", "skimage"]


def canny(
    image: UInt8[np.ndarray, "H W 3"],
    low: float,
    high: float,
    sigma: float = 0.0,
    backend: CannyBackend = "opencv",
) -> UInt8[np.ndarray, "H W"]:
    """Return the edges of an image: 255 on an edge, 0 elsewhere.

    Args:
        image: RGB, 0 to 255. Edges are found in its luminance.
        low: Weaker threshold on the magnitude of the 3x3 Sobel gradient, in gray
            values (100 is usual). Edges above it count if they touch a strong edge.
        high: Stronger threshold (200 is usual). The two thresholds are sorted.
        sigma: Standard deviation of a Gaussian blur before edge detection, in pixels.
            0 means no blur.
        backend: Implementation of Canny.
    """
    # Imported here and below, because the training step needs neither library.
    import cv2

    low, high = sorted((low, high))
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if backend == "opencv":
        if sigma > 0:
            gray = cv2.GaussianBlur(gray, (0, 0), sigma)
        return np.asarray(cv2.Canny(gray, low, high, L2gradient=False))
    from skimage import feature

    found = feature.canny(gray, sigma=sigma, low_threshold=low, high_threshold=high)
    return found.astype(np.uint8) * np.uint8(255)
