"""Compute the findings of a lung: shares of fluid and air, pleural line and nodule.

Heart size is part of the mediastinum (`chest.organs`). A nodule is a ball.
"""

import numpy as np

from medjax.data.phantoms.chest.cavity import (
    BOTTOM,
    HALF_WIDTH_CM,
    TOP,
    cavity_edge,
    cavity_medial_edge,
)
from medjax.data.phantoms.chest.parameters import Effusion, Nodule, Pneumothorax
from medjax.data.phantoms.chest.shapes import Grid, Table, ellipsoid, table_y
from medjax.data.phantoms.chest.tubes import Tubes
from medjax.data.phantoms.poses import Image

_SURFACE_CM = 1.4
"""Height of the transition from lung to fluid at the surface of an effusion."""


def fluid(grid: Grid, effusion: Effusion, side: int) -> Image:
    """Return the fraction of the lung, at each point, that a pleural effusion fills.

    The surface of the fluid rises towards the chest wall.
    """
    u = np.maximum(grid.x * np.float32(side / HALF_WIDTH_CM), 0)
    height = np.float32(effusion.height_cm) * (np.float32(0.65) + 0.35 * u * u * u * u)
    t = np.clip((grid.y - BOTTOM + height) * np.float32(1 / _SURFACE_CM), 0, 1)
    return t * t * (3 - 2 * t)


def outside_the_lung(grid: Grid, pneumothorax: Pneumothorax, side: int) -> Image:
    """Return 1 between chest wall and pleural line, and 0 inside the line."""
    medial, lateral = (grid.at(t) for t in _collapsed_lung(pneumothorax))
    x = grid.x * np.float32(side)
    depth = np.minimum(lateral - x, x - medial)
    soft = np.float32(1 / max(0.1, grid.pixel_cm))
    return np.clip(np.float32(0.5) - depth * soft, 0, 1) * (x > 0)


def pleural_line(pneumothorax: Pneumothorax, side: int) -> Tubes:
    """Return the edge of the lung inside a pneumothorax."""
    medial, lateral = _collapsed_lung(pneumothorax)
    y = table_y()
    inside = np.flatnonzero((lateral > medial) & (y < 8))[::4]
    # The line passes over the apex, and a little down on the mediastinum's side.
    up = inside[y[inside] < y[inside[0]] + 1.4][::-1]
    points = np.concatenate(
        [np.stack([medial[up], y[up]], 1), np.stack([lateral[inside], y[inside]], 1)]
    )
    thick = np.full((1, len(points)), 0.07)
    return Tubes(points[None] * (side, 1), thick, thick * 3.5)


def _collapsed_lung(pneumothorax: Pneumothorax) -> tuple[Table, Table]:
    """Return |x| of the medial and lateral edge of the lung inside a pneumothorax."""
    # Air rises: the gap is widest at the apex and closes near the diaphragm.
    y, share = table_y(), (table_y() - TOP) / (9 - TOP)
    gap = pneumothorax.width_cm * np.clip(1 - share**2, 0, 1)
    lateral = np.interp(y - 1.2 * gap, y, cavity_edge()) - gap
    medial = np.interp(y - 1.2 * gap, y, cavity_medial_edge())
    return medial, lateral


def nodule_chord(grid: Grid, nodule: Nodule) -> Image:
    """Return the chord of a nodule, in cm."""
    centre, radius = (nodule.x_cm, nodule.y_cm), nodule.radius_cm
    return 2 * ellipsoid(grid, centre, (radius, radius, radius))
