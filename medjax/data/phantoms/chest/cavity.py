"""Define the edges of the thoracic cavity, which lungs, heart and ribs share."""

import functools

from medjax.data.phantoms.chest.parameters import Side
from medjax.data.phantoms.chest.shapes import Table, tabulate

TOP, BOTTOM = -13.5, 13.2
"""y of the cavity's apices and of the costophrenic sulci, in cm."""

HALF_WIDTH_CM = 13.6
"""Greatest half width of the cavity, from the midline."""

SIDES: dict[Side, int] = {"right": -1, "left": 1}
"""Sign of x on each side of the patient."""


@functools.cache
def cavity_edge() -> Table:
    """Return x of the lateral wall of the thoracic cavity, as a function of y."""
    return tabulate(
        {
            TOP: 4.6,
            -13.35: 5.5,
            -13.0: 6.3,
            -12.2: 7.4,
            -10.5: 9.0,
            -8: 10.7,
            -4.5: 12.1,
            -0.5: 13.0,
            4: 13.4,
            9: HALF_WIDTH_CM,
            12.4: HALF_WIDTH_CM,
            BOTTOM: 13.4,
            18: 12.4,
        }
    )


@functools.cache
def cavity_medial_edge() -> Table:
    """Return x of the medial end of a lung, as a function of y."""
    return tabulate({TOP: 4.6, -13.35: 3.8, -13: 3.3, -12.2: 2.6, -9: 1.8, -4: 1.3})


@functools.cache
def cavity_depth() -> Table:
    """Return the half depth of the thoracic cavity, as a function of y."""
    return tabulate({TOP: 2.0, -12: 4.2, -9: 6.2, -4: 8.0, 3: 9.0, 12: 9.2})
