"""Define the outlines of a straight knee: knots in cm, in thigh, shank or patella.

A femoral condyle rests on the tibial plateau. The patella glides in front of it. It is
between two tendons: that of the thigh's muscle, and one that ends at the tibia's
tuberosity.
"""

import numpy as np
from jaxtyping import Float

Knots = Float[np.ndarray, "k 2"]
BandKnots = Float[np.ndarray, "k 3"]


def _knots(*rows: tuple[float, ...]) -> Float[np.ndarray, "k f"]:
    return np.array(rows, float)


PIVOT = (0.6, -2.2)
"""Point that the knee bends around: the middle of the condyle."""

FEMUR: Knots = _knots(
    (-1.3, -14),
    (-1.35, -8),
    (-1.75, -6.2),
    (-2.45, -4.9),
    (-2.9, -3.6),
    (-2.7, -2.1),
    (-1.8, -0.95),
    (-0.5, -0.38),
    (1.0, -0.4),
    (2.3, -1.0),
    (3.2, -2.15),
    (3.35, -3.45),
    (2.75, -4.5),
    (1.95, -5.3),
    (1.5, -6.7),
    (1.4, -8),
    (1.4, -14),
)
TIBIA: Knots = _knots(
    (-2.5, 0.62),
    (-1.2, 0.34),
    (0.3, 0.42),
    (1.8, 0.34),
    (2.95, 0.55),
    (3.1, 1.2),
    (2.6, 2.3),
    (1.85, 3.7),
    (1.55, 5.6),
    (1.5, 14),
    (-1.5, 14),
    (-1.7, 6.2),
    (-2.4, 4.5),
    (-2.65, 3.4),
    (-2.5, 2.2),
    (-2.85, 1.2),
)
PATELLA: Knots = _knots(
    (-4.5, -5.35),
    (-3.8, -4.7),
    (-3.5, -3.4),
    (-3.8, -2.2),
    (-4.6, -1.4),
    (-5.15, -2.2),
    (-5.45, -3.5),
    (-5.2, -4.8),
)
FIBULA: BandKnots = _knots(
    (3.3, 2.0, 0.16),
    (3.33, 2.2, 0.4),
    (3.35, 2.8, 0.55),
    (3.25, 4.0, 0.46),
    (3.1, 6.0, 0.38),
    (2.9, 14, 0.36),
)

FEMUR_CARTILAGE: BandKnots = _knots(
    (-2.5, -4.75, 0.3),
    (-2.9, -3.6, 1.0),
    (-2.7, -2.1, 1.0),
    (-1.8, -0.95, 1.0),
    (-0.5, -0.38, 1.0),
    (1.0, -0.4, 1.0),
    (2.3, -1.0, 1.0),
    (3.2, -2.15, 1.0),
    (3.35, -3.45, 0.3),
)
"""(x, y), and the thickness there as a share of `cartilage_cm`.

The two constants below have the same form.
"""

TIBIA_CARTILAGE: BandKnots = _knots(
    (-2.4, 0.58, 0.4), (-1.2, 0.34, 1.0), (0.3, 0.42, 1.0), (1.8, 0.34, 1.0),
    (2.8, 0.5, 0.4),
)  # fmt: skip
PATELLA_CARTILAGE: BandKnots = _knots(
    (-4.1, -5.0, 0.4), (-3.75, -4.5, 1.3), (-3.5, -3.4, 1.5), (-3.85, -2.1, 0.5)
)

FEMUR_SCAR: BandKnots = _knots(
    (-1.9, -4.8, 0.04), (-0.8, -4.2, 0.04), (0.9, -4.5, 0.04), (2.0, -4.5, 0.04)
)
TIBIA_SCAR: BandKnots = _knots(
    (-2.4, 2.3, 0.04), (-1.1, 1.7, 0.04), (0.9, 1.75, 0.04), (2.4, 1.85, 0.04)
)
"""Former growth plates: thin dark lines across the marrow."""

MENISCI: tuple[Knots, Knots] = (
    _knots((-2.55, 0.5), (-2.6, -0.3), (-2.15, -0.6), (-1.5, -0.2), (-0.7, 0.05),
           (-1.5, 0.3)),
    _knots((3.0, 0.45), (3.15, -0.4), (2.75, -0.85), (2.0, -0.3), (1.1, 0.05),
           (2.0, 0.32)),
)  # fmt: skip
"""Anterior and posterior horn: wedges that point to the middle of the joint."""

JOINT: BandKnots = _knots(
    (-3.25, -3.0, 0.2), (-2.75, -1.3, 0.3), (-1.6, -0.4, 0.4), (0.2, 0.02, 0.42),
    (1.8, -0.3, 0.4), (3.0, -1.2, 0.25), (3.55, -2.6, 0.12),
)  # fmt: skip
"""Inside of the capsule, which is fluid except for cartilage and menisci."""

POUCH: BandKnots = _knots(
    (-3.2, -4.3, 0.25), (-3.0, -5.3, 0.7), (-2.4, -6.6, 1.0), (-2.0, -7.6, 0.3)
)
"""Pouch above the patella. Its widths are multiplied by a number that `fluid` sets."""

THIGH_FRONT: Knots = _knots(
    (-1.7, -14), (-1.75, -8.2), (-2.2, -6.9), (-3.0, -6.2), (-3.7, -6.6), (-4.3, -8.2),
    (-4.9, -14),
)  # fmt: skip
THIGH_BACK: Knots = _knots(
    (2.1, -14), (2.2, -8), (3.1, -6.4), (4.0, -5.0), (4.6, -3.8), (4.95, -3.6),
    (5.2, -4.6), (5.7, -7.5), (5.9, -14),
)  # fmt: skip
CALF: Knots = _knots(
    (3.6, -3.5), (4.3, -2.6), (4.7, -0.6), (5.1, 2), (5.4, 5), (5.4, 14), (3.3, 14),
    (3.4, 6), (3.55, 3), (3.75, 0.6), (3.6, -1.4),
)  # fmt: skip
CALF_DEEP: Knots = _knots(
    (3.3, 1.2), (2.9, 2.3), (2.2, 3.7), (1.85, 5.6), (1.8, 14), (3.1, 14), (3.2, 6),
    (3.35, 3),
)  # fmt: skip

THIGH_TENDON: BandKnots = _knots(
    (-4.8, -5.0, 0.22), (-4.5, -5.9, 0.22), (-4.6, -7.6, 0.2), (-5.0, -14, 0.16)
)
PATELLA_TENDON_TOP: BandKnots = _knots((-5.05, -2.3, 0.1), (-4.7, -1.4, 0.22))
PATELLA_TENDON_END: BandKnots = _knots((-3.1, 2.5, 0.2), (-2.6, 3.9, 0.15))
VESSELS: BandKnots = _knots(
    (2.2, -8.0, 0.13), (2.9, -5.8, 0.13), (3.85, -3.6, 0.14), (3.95, -1.2, 0.12),
    (3.6, 1.0, 0.08),
)  # fmt: skip
"""Popliteal vessels behind the femur, which are dark because of flow."""

SKIN_THIGH_FRONT: Knots = _knots((-5.5, -14), (-5.35, -8), (-5.4, -6.2), (-5.8, -4.7))
SKIN_PATELLA: Knots = _knots((-5.95, -3.3), (-5.6, -1.6))
SKIN_SHANK_FRONT: Knots = _knots((-4.2, 0.8), (-3.4, 3.2), (-2.75, 5.4), (-2.2, 14))
SKIN_SHANK_BACK: Knots = _knots((5.6, 14), (5.65, 5), (5.35, 2), (5.0, -0.6))
SKIN_THIGH_BACK: Knots = _knots((5.4, -3.2), (5.9, -7), (6.1, -14))
