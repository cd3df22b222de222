"""Compute the radiograph of a chest from its parameters.

The optical depth of a ray is, by Beer and Lambert,

    tau(x, y) = sum_i mu_i l_i(x, y)                                           (1)

over the tissues' attenuations mu_i and the lengths l_i of the ray in them. Rays are
parallel (`chest.shapes`). Lung fills the cavity except for heart, great vessels and
the space under the diaphragm.
"""

import numpy as np
from jaxtyping import UInt8

from medjax.data.phantoms.chest.bones import skeleton
from medjax.data.phantoms.chest.cavity import SIDES
from medjax.data.phantoms.chest.film import expose
from medjax.data.phantoms.chest.findings import (
    fluid,
    nodule_chord,
    outside_the_lung,
    pleural_line,
)
from medjax.data.phantoms.chest.organs import (
    body,
    breasts,
    lung,
    mediastinum,
    stomach_gas,
)
from medjax.data.phantoms.chest.parameters import ChestParameters, Side
from medjax.data.phantoms.chest.shapes import Grid, make_grid
from medjax.data.phantoms.chest.spine import vertebrae
from medjax.data.phantoms.chest.tubes import draw_tubes
from medjax.data.phantoms.chest.vessels import airways, vessels
from medjax.data.phantoms.poses import Image, Pose, pose_in_field

FIELD_CM = 40.0
"""Side of the image in cm of the body, at scale 1."""

_SOFT, _LUNG = 0.17, 0.05
"""Attenuation of soft tissue and of aerated lung, 1/cm, at a diagnostic spectrum."""

_NODULE = 0.24
"""Attenuation of a nodule, which has some calcium, minus that of lung, 1/cm."""

_BLOOD = 0.24
"""Attenuation of a vessel minus that of lung, 1/cm. It is doubled, because the
thinnest vessels are left out."""

_THINNER_AIR = 0.04
"""Attenuation of lung minus that of a pneumothorax, 1/cm. It is a mean over the ray,
because some lung remains in front of and behind the air."""


def render(
    parameters: ChestParameters, size: int
) -> UInt8[np.ndarray, "{size} {size}"]:
    """Compute the radiograph of a phantom.

    Args:
        parameters: Parameters of the phantom.
        size: Pixels along a side, 8 or more.

    Returns:
        Gray values, bright where the body is dense.
    """
    # A pixel is the mean over its area. For small pixels, smooth edges are enough.
    finer = 2 if size <= 128 else 1
    fine = optical_depth(parameters, make_pose(parameters, size * finer))
    depth = np.zeros((size, size), np.float32)
    for row in range(finer):
        for column in range(finer):
            depth += fine[row::finer, column::finer] * np.float32(1 / finer**2)
    return expose(depth, parameters, FIELD_CM / size)


def make_pose(parameters: ChestParameters, size: int) -> Pose:
    """Return the body's pose in an image with sides of `size` pixels."""
    return pose_in_field(
        size,
        FIELD_CM,
        parameters.rotation_degrees,
        parameters.scale,
        (parameters.shift_x, parameters.shift_y),
    )


def optical_depth(parameters: ChestParameters, pose: Pose) -> Image:
    """Return the optical depth of the body along each ray, by equation (1)."""
    grid = make_grid(pose)
    depth = np.float32(2 * _SOFT) * body(grid, parameters)
    if parameters.sex == "F":
        depth += np.float32(2 * _SOFT) * breasts(grid, parameters)
    heart = mediastinum(grid, parameters)
    blood = draw_tubes(pose, vessels(parameters, _BLOOD))
    for side in SIDES:
        depth += _lung_depth(grid, pose, parameters, side, heart, blood)
    depth += vertebrae(grid, parameters.age)
    depth += draw_tubes(pose, [*skeleton(parameters), *airways(-_SOFT)])
    if parameters.stomach_gas_cm:
        depth -= np.float32(2 * _SOFT) * stomach_gas(grid, parameters)
    return np.maximum(depth, 0)


def _lung_depth(
    grid: Grid,
    pose: Pose,
    parameters: ChestParameters,
    side: Side,
    heart: Image,
    blood: Image,
) -> Image:
    """Return the change of the depth by a lung and its findings, from soft tissue."""
    sign = SIDES[side]
    chord = lung(grid, parameters, sign, heart)
    # Vessels thin out near the lung's rim. The heart hides most vessels that it covers.
    share = chord * np.float32(1 / 5) / (1 + heart * np.float32(0.4))
    share = np.minimum(share, 1) * (grid.x * sign > 0)
    effusion, pneumothorax = parameters.effusion, parameters.pneumothorax
    nodule = parameters.nodule
    if effusion and effusion.side == side:
        aerated = 1 - fluid(grid, effusion, sign)
        chord, share = chord * aerated, share * aerated
    depth = -np.float32(_SOFT - _LUNG) * chord
    if nodule and nodule.side == side:
        inside = np.minimum(nodule_chord(grid, nodule), chord)
        depth += np.float32(_NODULE) * inside
    if pneumothorax and pneumothorax.side == side:
        outside = outside_the_lung(grid, pneumothorax, sign)
        air = chord * outside
        collapsed = chord - air
        # The lung keeps its mass, so it gets denser.
        denser = air.sum() / max(collapsed.sum(), air.sum())
        depth += np.float32(_THINNER_AIR) * (np.float32(denser) * collapsed - air)
        share = share * (1 - outside)
        line = draw_tubes(pose, [pleural_line(pneumothorax, sign)])
        depth += line * np.minimum(chord, 1)
    return depth + blood * share
