"""Compute the lateral and third ventricles from their share of the brain's area."""

import numpy as np

from medjax.data.phantoms.brain.parameters import BrainParameters
from medjax.data.phantoms.curves import Points, band, signed_area

_LATERAL = (
    # x, y, half width low (level 0), half width high (level 1).
    (1.85, -4.1, 0.12, 0.10),
    (1.35, -3.5, 0.38, 0.28),
    (0.85, -2.6, 0.42, 0.36),
    (0.55, -1.5, 0.18, 0.36),
    (0.75, -0.3, 0.02, 0.36),
    (1.25, 1.0, 0.02, 0.36),
    (1.95, 2.0, 0.26, 0.38),
    (2.45, 2.9, 0.50, 0.42),
    (2.75, 3.9, 0.38, 0.28),
    (2.80, 4.8, 0.10, 0.08),
)
"""Ventricle at the right of the image: frontal horn, body, trigone, occipital horn."""

_SEPTUM_CM = 0.06
"""Half the thickness of the septum between the lateral ventricles."""

_THIRD = ((-0.9, 0.5), (0.0, 1.0), (0.9, 1.0), (1.7, 0.4))
"""y along the third ventricle, and the share of its half width there."""

_THIRD_CM = 0.11
_STEPS = 4


def ventricles(parameters: BrainParameters, brain_cm2: float) -> list[Points]:
    """Return the outlines of the ventricles.

    Args:
        parameters: Parameters of the phantom.
        brain_cm2: Area inside the skull, in cm². `ventricle_share` refers to it.
    """
    wanted = parameters.ventricle_share * brain_cm2
    factor = 1.0
    # The loop converges, because areas grow a little slower than widths.
    for _ in range(_STEPS):
        outlines = _widened(parameters, factor)
        factor *= wanted / sum(abs(signed_area(o)) for o in outlines)
    return _widened(parameters, factor)


def _widened(parameters: BrainParameters, factor: float) -> list[Points]:
    x, y, low, high = np.array(_LATERAL).T
    level = parameters.level
    width = factor * (low + level * (high - low))
    stretch_x, stretch_y = parameters.width_cm / 13.2, parameters.length_cm / 16.4
    side = np.array([[-1], [1]])
    own = width * (1 + side * parameters.asymmetry / 2)
    # A ventricle that widens moves away from the other one, beyond the midline.
    place = np.maximum(x * stretch_x + 0.35 * (own - 0.3), own + _SEPTUM_CM)
    both = np.stack([side * place, np.broadcast_to(y * stretch_y, own.shape), own], 2)
    slit = np.array([(0, at * stretch_y, share) for at, share in _THIRD])
    slit[:, 2] *= _THIRD_CM * factor * (1 - level)
    return [*band(both), band(slit[None])[0]]
