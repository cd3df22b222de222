"""Compute the image of a brain from its parameters."""

import numpy as np
from jaxtyping import UInt8

from medjax.data.phantoms.brain.parameters import FIELD_CM, BrainParameters
from medjax.data.phantoms.brain.tissues import tissues
from medjax.data.phantoms.layers import compose
from medjax.data.phantoms.magnet import expose, make_pose


def render_brain(
    parameters: BrainParameters, size: int
) -> UInt8[np.ndarray, "{size} {size}"]:
    """Compute the image of a phantom, in gray values.

    Args:
        parameters: Parameters of the phantom.
        size: Pixels along a side. From 32 on, a brain can be recognised.
    """
    pose = make_pose(parameters.scan, size, FIELD_CM)
    return expose(compose(pose, tissues(parameters)), parameters.scan)
