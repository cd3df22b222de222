"""Build the skeleton of the chest as tubes: ribs, clavicles, scapulae, arms, spine.

A rib is a tilted ring around the thoracic cavity. At the angle phi from the spine

    x = x_0 + (X(y) - x_0) sin phi,   y = y_k + D_k (1 - cos phi) / 2,
    z = -Z(y) cos phi                                                          (1)

where X and Z are the cavity's half width and half depth. Rib k begins at y_k and ends
lower in front, by D_k. At the side, where a rib runs along the rays, its chord is long:
the depth of a tube with cross-section S and half width w is 2 S / (pi w) · ds / dl.
Here ds is the tube's length and dl the length of its projection.
"""

import functools

import numpy as np

from medjax.data.phantoms.chest.cavity import cavity_depth, cavity_edge
from medjax.data.phantoms.chest.parameters import ChestParameters
from medjax.data.phantoms.chest.shapes import table_y
from medjax.data.phantoms.chest.spine import bone_density, vertebral_arches
from medjax.data.phantoms.chest.tubes import Tubes, bones

_BONE = 0.75
"""Attenuation of a bone's cortex minus soft tissue, 1/cm, at a diagnostic spectrum."""

_SHOULDER = (17.6, -10.9)
_ARM_CM = 60.0
"""Length of an arm, long enough to leave every image."""

_FIRST_RIB_Y = -12.7
_LAST_RIB_Y = 12.6
_RIB_DROP_CM = (3.6, 6.0, 7.8, 8.8, 9.4, 9.8, 10.0, 10.0, 10.0, 10.5, 11.0, 12.0)
_RIB_END_DEGREES = (150, 148, 146, 143, 140, 137, 133, 127, 118, 104, 82, 56)
_RIB_SECTION_CM2 = 0.62


def skeleton(parameters: ChestParameters) -> list[Tubes]:
    """Return all bones except the vertebral bodies."""
    cortex = _BONE * bone_density(parameters.age)
    return [
        Tubes(
            np.concatenate([left.points, left.points * (-1, 1)]),
            np.concatenate([left.width, left.width]),
            np.concatenate([left.depth, left.depth]) * cortex,
            left.core,
        )
        for left in (_ribs(), *vertebral_arches(), *_shoulder(parameters))
    ]


@functools.cache
def _ribs() -> Tubes:
    """Return the left ribs, by equation (1)."""
    drop, end = (np.array(v, float)[:, None] for v in (_RIB_DROP_CM, _RIB_END_DEGREES))
    start = np.linspace(_FIRST_RIB_Y, _LAST_RIB_Y, len(drop))[:, None]
    phi = np.deg2rad(4 + (end - 4) * np.linspace(0, 1, 30))
    y = start + drop * (1 - np.cos(phi)) / 2
    x = 1.2 + (np.interp(y, table_y(), cavity_edge()) + 0.15 - 1.2) * np.sin(phi)
    z = -(np.interp(y, table_y(), cavity_depth()) + 0.5) * np.cos(phi)
    dx, dy, dz = (np.gradient(v, axis=1) for v in (x, y, z))
    stretch = np.sqrt(1 + dz**2 / (dx**2 + dy**2))
    # A rib shows its broad side in front and behind, and its edge at the side.
    width = 0.34 + 0.28 * np.abs(np.cos(phi))
    chord = 2 * _RIB_SECTION_CM2 / (np.pi * width) * stretch
    # In front, bone changes to cartilage over about a centimetre.
    chord *= np.clip((phi[:, -1:] - phi) / 0.12, 0, 1)
    return Tubes(np.stack([x, y], axis=2), width, chord, core=0.66)


def _shoulder(parameters: ChestParameters) -> list[Tubes]:
    """Return the left clavicle, scapula and humerus."""
    # In a PA view, the arms are turned inwards and the scapulae leave the lungs.
    out = 1.7 if parameters.view == "PA" else 0.0
    up = 0.0 if parameters.view == "PA" else -0.9
    clavicle = [
        (1.5, -9.6 + up, 0.85, 0.5),
        (2.6, -9.9 + up, 0.75, 0.6),
        (5.5, -10.7 + up, 0.52, 0.65),
        (9.5, -12.3 + up, 0.5, 0.65),
        (13.0, -13.2 + up, 0.55, 0.6),
        (16.2, -13.1, 0.62, 0.35),
    ]
    scapula = [
        (16.0, -9.3, 0.5, 0.3),
        (14.6 + out / 2, -5.5, 0.32, 0.45),
        (12.9 + out, -1.0, 0.28, 0.4),
        (11.6 + out, 1.8, 0.3, 0.25),
        (10.8 + out, 1.0, 0.2, 0.15),
        (10.0 + out, -2.5, 0.16, 0.16),
        (9.4 + out, -6.5, 0.15, 0.14),
        (9.6 + out / 2, -10.5, 0.15, 0.1),
    ]
    spine = [
        (9.6 + out, -7.6, 0.25, 0.1),
        (12.5 + out / 2, -9.8, 0.4, 0.3),
        (15.6, -12.3, 0.55, 0.4),
        (17.8, -13.4, 0.7, 0.35),
        (18.6, -12.8, 0.5, 0.1),
    ]
    (x, y), (end_x, end_y) = arm_ends(parameters)
    dx, dy = end_x - x, end_y - y
    humerus = [
        (x - 0.7, y - 1.9, 0.9, 0.1),
        (x - 0.5, y - 1.2, 1.9, 0.6),
        (x - 0.1, y + 0.2, 2.2, 0.8),
        (x + 0.05 * dx, y + 0.05 * dy, 1.5, 0.9),
        (x + 0.13 * dx, y + 0.13 * dy, 1.15, 1.0),
        (x + 0.3 * dx, y + 0.3 * dy, 1.1, 1.0),
        (x + 0.6 * dx, y + 0.6 * dy, 1.1, 1.0),
        (x + dx, y + dy, 1.1, 1.0),
    ]
    knots = (clavicle, scapula, spine, humerus)
    return [bones(np.array([some], float), core=0.7) for some in knots]


def arm_ends(
    parameters: ChestParameters,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the (x, y) of the left shoulder joint and of a point far down the arm."""
    angle, (x, y) = np.deg2rad(parameters.arm_degrees), _SHOULDER
    dx, dy = _ARM_CM * float(np.sin(angle)), _ARM_CM * float(np.cos(angle))
    return (x, y), (x + dx, y + dy)
