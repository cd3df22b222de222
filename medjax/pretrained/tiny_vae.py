"""An autoencoder whose weights are set by hand: latents are the image's colours.

An autoencoder with random weights hides whatever a diffusion model learns on its
latents. This one has the layers of `AutoencoderKL`, at the image's own resolution; its
latents are luminance, two colour differences and a zero, and decode to the same image.

Its residual blocks and its attention end in zeros and so change nothing. There remain
a norm and a nonlinearity before the last convolution, which are passed like this:

    silu(z) − silu(−z) = z                                                       (1)

holds exactly, so each signal x goes as the pair (x, −x); and with ±K beside it in its
group of four, the norm's mean is 0 and its deviation K/√2 · √(1 + ⟨x²⟩/K²), nearly
constant for K ≫ |x|. What remains is a factor of 1 − ⟨x²⟩/2K²: 0.9995 for K = 32.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from medjax import trees
from medjax.arrays import Params
from medjax.models.autoencoder_kl import AutoencoderKL

SIGNALS = 4
"""Latent channels, each a group of four channels inside."""

CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [4 * SIGNALS],
    "down_block_types": ["DownEncoderBlock2D"],
    "in_channels": 3,
    "latent_channels": SIGNALS,
    "layers_per_block": 1,
    "norm_num_groups": SIGNALS,
    "out_channels": 3,
    "sample_size": 64,
    # Gray images with a deviation of 0.6 have a luminance of unit variance.
    "scaling_factor": 1.0,
    "up_block_types": ["UpDecoderBlock2D"],
}
# Luminance and two differences of colour, orthonormal: the transpose inverts it.
COLOURS = np.array(
    [
        np.array([1, 1, 1]) / np.sqrt(3),
        np.array([1, -1, 0]) / np.sqrt(2),
        np.array([1, 1, -2]) / np.sqrt(6),
        [0, 0, 0],
    ],
    np.float32,
)
K = 32.0
# Next to none: the latents' deviation is 0.7% of a gray value's range.
LOGVAR = -10.0
# A layer whose kernel is zero ends a branch that then adds nothing.
ZERO = ("conv2/kernel", "proj_attn/kernel")


def tiny_vae_params(module: AutoencoderKL) -> Params:
    """Return the weights; `module` is built from `CONFIG`."""
    drawn = trees.flatten(module.init_params(jax.random.key(0)))
    flat = {
        path: np.zeros_like(leaf) if path.endswith(ZERO) else leaf
        for path, leaf in drawn.items()
    }
    unit = np.eye(SIGNALS, dtype=np.float32)
    flat |= _into_groups("encoder/conv_in", COLOURS)
    flat |= _out_of_groups("encoder/conv_out", np.concatenate([unit, 0 * unit]))
    flat["encoder/conv_out/bias"] = np.repeat(
        np.array([0, LOGVAR], np.float32), SIGNALS
    )
    flat["quant_conv/kernel"] = np.eye(2 * SIGNALS, dtype=np.float32)[None, None]
    flat["post_quant_conv/kernel"] = unit[None, None]
    flat |= _into_groups("decoder/conv_in", unit)
    flat |= _out_of_groups("decoder/conv_out", COLOURS.T)
    return trees.unflatten(flat)


def _into_groups(path: str, matrix: Float[np.ndarray, "s i"]) -> Params:
    """Return a convolution to groups of (x, −x, K, −K), x being ``matrix @ input``."""
    kernel = np.zeros((3, 3, matrix.shape[1], SIGNALS, 4), np.float32)
    kernel[1, 1, :, :, 0] = matrix.T
    kernel[1, 1, :, :, 1] = -matrix.T
    return {
        f"{path}/kernel": kernel.reshape(3, 3, matrix.shape[1], 4 * SIGNALS),
        f"{path}/bias": np.tile(np.array([0, 0, K, -K], np.float32), SIGNALS),
    }


def _out_of_groups(path: str, matrix: Float[np.ndarray, "o s"]) -> Params:
    """Return a convolution to ``matrix @ x`` from normed groups, by (1)."""
    kernel = np.zeros((3, 3, SIGNALS, 4, matrix.shape[0]), np.float32)
    kernel[1, 1, :, 0, :] = matrix.T * K / np.sqrt(2)
    kernel[1, 1, :, 1, :] = -matrix.T * K / np.sqrt(2)
    return {
        f"{path}/kernel": kernel.reshape(3, 3, 4 * SIGNALS, matrix.shape[0]),
        f"{path}/bias": np.zeros(matrix.shape[0], np.float32),
    }
