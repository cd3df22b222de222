"""Build the tissues of a head, as layers in the order of painting.

The contrast is T1-weighted. Fat is white, white matter is brighter than gray matter,
fluid is dark, and bone is black except for its marrow.
"""

from collections.abc import Sequence

import numpy as np

from medjax.data.phantoms.brain import cortex
from medjax.data.phantoms.brain.cavities import ventricles
from medjax.data.phantoms.brain.parameters import BrainParameters
from medjax.data.phantoms.curves import Points, band, closed_curve, grown, signed_area
from medjax.data.phantoms.layers import Layer

_SKIN, _FAT, _BONE, _MARROW, _FLUID, _FALX = 0.4, 0.82, 0.05, 0.3, 0.13, 0.42
_WHITE = 0.74
_CORTEX_CM = 0.33
_SKIN_CM, _FALX_CM = 0.15, 0.03
_TABLE_SHARE = 0.32
"""Share of the skull's thickness in each of the two tables that enclose its marrow."""

_CAUDATE = ((1.75, -2.7), (2.1, -1.9), (1.75, -1.0), (1.2, -0.7), (1.05, -1.6))
_LENTIFORM = ((2.6, -2.3), (3.35, -1.2), (3.35, 0.2), (2.7, 1.1), (2.0, -0.1),
              (2.0, -1.2))  # fmt: skip
_THALAMUS = ((0.75, -0.5), (1.5, 0.1), (2.0, 1.2), (1.5, 2.0), (0.75, 1.8), (0.25, 0.8))
_INSULA = ((4.5, -2.6), (4.25, -1.4), (4.2, 0.0), (4.55, 1.2))
_SYLVIAN = ((4.2, -0.9), (4.9, -1.1), (5.6, -0.9), (6.6, -1.2))


def tissues(parameters: BrainParameters) -> list[Layer]:
    """Return the layers of a head."""
    inside = cortex.inside_of_skull(parameters)
    gap = 0.04 + 0.5 * parameters.sulcus_cm
    surface = grown(inside, -gap)
    cavities = ventricles(parameters, abs(signed_area(inside)))
    return [
        *_skull(parameters, inside),
        Layer([surface], _hemispheres(parameters, surface)),
        Layer(cavities, _FLUID),
    ]


def _skull(parameters: BrainParameters, inside: Points) -> list[Layer]:
    bone = parameters.bone_cm
    skin = grown(inside, bone + parameters.scalp_cm)
    return [
        Layer([skin], _SKIN),
        Layer([grown(skin, -_SKIN_CM)], _FAT),
        Layer([grown(inside, bone)], _BONE),
        Layer([grown(inside, (1 - _TABLE_SHARE) * bone)], _MARROW),
        Layer([grown(inside, _TABLE_SHARE * bone)], _BONE),
        Layer([inside], _FLUID),
    ]


def _hemispheres(parameters: BrainParameters, surface: Points) -> list[Layer]:
    """Return white matter, the gray matter around and inside it, and the sulci."""
    gray = 0.54 - 0.12 * parameters.contrast
    folds = [cortex.sulci(parameters), cortex.fissure(parameters)]
    low = max(0.0, 1 - 1.3 * parameters.level)
    insulae = _both_sides(_INSULA, _SYLVIAN)
    falx = cortex.fissure(parameters) * (1, 1, 0)
    falx[..., 2] = _FALX_CM
    walls = [o for knots in folds for o in band(knots + np.array([0, 0, _CORTEX_CM]))]
    return [
        Layer([surface], gray),
        Layer([grown(surface, -_CORTEX_CM)], _WHITE),
        Layer(_nuclei(parameters), (gray + _WHITE) / 2, low),
        Layer(_bands(insulae, _CORTEX_CM + 0.08), gray, low),
        Layer(walls, gray),
        Layer([o for knots in folds for o in band(knots)], _FLUID),
        Layer(_bands(insulae, 0.04 + 0.6 * parameters.sulcus_cm), _FLUID, low),
        Layer(list(band(falx)), _FALX),
    ]


def _nuclei(parameters: BrainParameters) -> list[Points]:
    """Return the outlines of caudate and lentiform nuclei and thalami."""
    stretch = (parameters.width_cm / 13.2, parameters.length_cm / 16.4)
    halves = _both_sides(_CAUDATE, _LENTIFORM, _THALAMUS)
    return [closed_curve(knots * stretch) for knots in halves]


def _both_sides(*curves: Sequence[tuple[float, float]]) -> list[Points]:
    return [np.array(curve) * (side, 1) for curve in curves for side in (-1, 1)]


def _bands(curves: Sequence[Points], width_cm: float) -> list[Points]:
    return list(band(np.stack([np.insert(c, 2, width_cm, axis=1) for c in curves])))
