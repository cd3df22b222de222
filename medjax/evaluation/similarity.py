"""How like its original an image is: PSNR and SSIM, by scikit-image.

Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural
Similarity", 2004, with its Gaussian window (SSIM).
"""

import numpy as np
from jaxtyping import Float

# Images are in [-1, 1].
_RANGE = 2.0


def psnr(
    original: Float[np.ndarray, "b H W c"], image: Float[np.ndarray, "b H W c"]
) -> Float[np.ndarray, " b"]:
    """Return each image's peak signal-to-noise ratio in dB; both in [-1, 1]."""
    from skimage.metrics import peak_signal_noise_ratio

    pairs = zip(original, image, strict=True)
    return np.array(
        [peak_signal_noise_ratio(a, b, data_range=_RANGE) for a, b in pairs]
    )


def ssim(
    original: Float[np.ndarray, "b H W c"], image: Float[np.ndarray, "b H W c"]
) -> Float[np.ndarray, " b"]:
    """Return each image's structural similarity, at most 1; both in [-1, 1]."""
    from skimage.metrics import structural_similarity

    return np.array(
        [
            structural_similarity(
                a,
                b,
                data_range=_RANGE,
                channel_axis=-1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for a, b in zip(original, image, strict=True)
        ]
    )
