"""Compute the image of a knee from its parameters."""

import numpy as np
from jaxtyping import UInt8

from medjax.data.phantoms.knee.parameters import FIELD_CM, KneeParameters
from medjax.data.phantoms.knee.tissues import tissues
from medjax.data.phantoms.layers import Layer, compose
from medjax.data.phantoms.magnet import expose, make_pose


def render_knee(
    parameters: KneeParameters, size: int
) -> UInt8[np.ndarray, "{size} {size}"]:
    """Compute the image of a phantom, in gray values.

    Args:
        parameters: Parameters of the phantom.
        size: Pixels along a side. From 32 on, a knee can be recognised.
    """
    layers = tissues(parameters)
    if parameters.facing == "right":
        layers = [_mirrored(layer) for layer in layers]
    pose = make_pose(parameters.scan, size, FIELD_CM)
    return expose(compose(pose, layers), parameters.scan)


def _mirrored(layer: Layer) -> Layer:
    return Layer([o * (-1, 1) for o in layer.outlines], layer.signal, layer.share)
