"""Compare images with their originals: mean squared error, PSNR and SSIM.

Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural
Similarity", 2004, with its Gaussian window (SSIM, computed by scikit-image).
"""

import numpy as np
from jaxtyping import Float

# Images are in [-1, 1].
_RANGE = 2.0
# The margin is half the width of the window: 3.5 times its sigma.
_SIGMA, _MARGIN = 1.5, 5

Images = Float[np.ndarray, "b H W c"]
Mask = Float[np.ndarray, "b H W 1"]
Each = Float[np.ndarray, " b"]


def likeness(
    original: Images, image: Images, mask: Mask | None = None
) -> dict[str, Each]:
    """Return ``mse``, ``psnr_db`` and ``ssim`` (at most 1) of each image.

    Args:
        original: Original images in [-1, 1], at least 11 pixels high and wide.
        image: Images to compare, likewise.
        mask: 1 on the image, 0 on padding, which does not count. None counts all
            pixels.
    """
    mse = _mean(np.square(original - image), mask)
    return {"mse": mse, "psnr_db": _decibels(mse), "ssim": _ssim(original, image, mask)}


def psnr(original: Images, image: Images) -> Each:
    """Return each image's peak signal-to-noise ratio in dB. Images are in [-1, 1]."""
    return _decibels(_mean(np.square(original - image), None))


def _decibels(mse: Each) -> Each:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(_RANGE**2 / mse)


def _mean(values: Images, mask: Mask | None) -> Each:
    weights = np.broadcast_to(1.0 if mask is None else mask, values.shape)
    return np.average(values, axis=(1, 2, 3), weights=weights)


def _ssim(original: Images, image: Images, mask: Mask | None) -> Each:
    from skimage.metrics import structural_similarity

    maps = [
        structural_similarity(
            a,
            b,
            data_range=_RANGE,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=_SIGMA,
            use_sample_covariance=False,
            full=True,
        )[1]
        for a, b in zip(original, image, strict=True)
    ]
    # Keep pixels whose window is entirely in the image, as scikit-image's mean does.
    inside = np.s_[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return _mean(np.stack(maps)[inside], None if mask is None else mask[inside])
