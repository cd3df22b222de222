"""Build the tissues of a bent knee, as layers in the order of painting.

The contrast is between those of proton density and DESS. Cartilage and fluid are
bright, fat and marrow are less bright, and muscle is gray. Cortical bone, menisci and
tendons are black.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from medjax.data.phantoms.curves import Points, band, closed_curve, grown
from medjax.data.phantoms.knee import anatomy
from medjax.data.phantoms.knee.parameters import KneeParameters
from medjax.data.phantoms.layers import Layer

_SKIN, _CORTEX, _TENDON, _MENISCUS, _VESSEL = 0.45, 0.05, 0.1, 0.12, 0.15
_SKIN_CM, _CORTEX_CM = 0.12, 0.1
_THICKEST_CM = 0.3
_PATELLA_SHARE = -0.1
"""Turn of the patella as a share of the flexion: it glides down along the femur."""


@dataclasses.dataclass(frozen=True)
class _Bend:
    """Map from the parts of a straight knee to their places in a bent knee."""

    flexion_degrees: float

    def thigh(self, knots: Float[np.ndarray, "k f"]) -> Float[np.ndarray, "k f"]:
        return _turned(knots, self.flexion_degrees / 2)

    def shank(self, knots: Float[np.ndarray, "k f"]) -> Float[np.ndarray, "k f"]:
        return _turned(knots, -self.flexion_degrees / 2)

    def patella(self, knots: Float[np.ndarray, "k f"]) -> Float[np.ndarray, "k f"]:
        return _turned(knots, _PATELLA_SHARE * self.flexion_degrees)


def tissues(parameters: KneeParameters) -> list[Layer]:
    """Return the layers of a knee whose patella is at the left side of the image."""
    bend = _Bend(parameters.flexion_degrees)
    return [
        *_envelope(parameters, bend),
        *_muscles(parameters, bend),
        *_joint(parameters, bend),
        *_bones(parameters, bend),
        *_tendons(bend),
    ]


def _envelope(parameters: KneeParameters, bend: _Bend) -> list[Layer]:
    """Return the skin, and the fat that fills all remaining space."""
    fat = parameters.fat_cm
    front = (-0.3 * fat, 0)
    back = (fat, 0)
    knots = [
        bend.thigh(anatomy.SKIN_THIGH_FRONT + front),
        bend.patella(anatomy.SKIN_PATELLA),
        bend.shank(anatomy.SKIN_SHANK_FRONT + front),
        bend.shank(_thicker(anatomy.SKIN_SHANK_BACK, parameters) + back),
        bend.thigh(_thicker(anatomy.SKIN_THIGH_BACK, parameters) + back),
    ]
    skin = closed_curve(np.concatenate(knots))
    return [
        Layer([skin], _SKIN),
        Layer([grown(skin, -_SKIN_CM)], 0.44 + 0.2 * parameters.contrast),
    ]


def _muscles(parameters: KneeParameters, bend: _Bend) -> list[Layer]:
    thigh = [
        bend.thigh(_thicker(knots, parameters))
        for knots in (anatomy.THIGH_FRONT, anatomy.THIGH_BACK)
    ]
    shank = [
        bend.shank(_thicker(knots, parameters))
        for knots in (anatomy.CALF, anatomy.CALF_DEEP)
    ]
    signal = 0.36 - 0.08 * parameters.contrast
    vessels = band(bend.thigh(anatomy.VESSELS)[None])
    return [
        Layer([closed_curve(knots) for knots in (*thigh, *shank)], signal),
        Layer(list(vessels), _VESSEL),
    ]


def _joint(parameters: KneeParameters, bend: _Bend) -> list[Layer]:
    """Return fluid, menisci and cartilage. Bones will cover its inner half."""
    fluid = parameters.fluid
    wet = [
        _wide(bend.thigh(anatomy.JOINT), 0.6 + 0.4 * fluid),
        _wide(bend.thigh(anatomy.POUCH), 0.06 + 0.34 * fluid),
    ]
    thick = parameters.cartilage_cm
    cartilage = [
        _wide(bend.thigh(_sliced(anatomy.FEMUR_CARTILAGE, parameters)), thick),
        _wide(bend.shank(_worn(anatomy.TIBIA_CARTILAGE, parameters)), thick),
        _wide(bend.patella(anatomy.PATELLA_CARTILAGE), thick),
    ]
    menisci = [closed_curve(bend.shank(knots)) for knots in anatomy.MENISCI]
    return [
        Layer(wet, 0.95),
        Layer(menisci, _MENISCUS),
        Layer(cartilage, 0.8),
    ]


def _bones(parameters: KneeParameters, bend: _Bend) -> list[Layer]:
    outer = [
        closed_curve(bend.thigh(_sliced(anatomy.FEMUR, parameters))),
        closed_curve(bend.shank(_worn(anatomy.TIBIA, parameters))),
        closed_curve(bend.patella(anatomy.PATELLA)),
    ]
    marrow = 0.5 + 0.2 * parameters.contrast
    scars = [
        *band(bend.thigh(_sliced(anatomy.FEMUR_SCAR, parameters))[None]),
        *band(bend.shank(anatomy.TIBIA_SCAR)[None]),
    ]
    layers = [
        Layer(outer, _CORTEX),
        Layer([grown(bone, -_CORTEX_CM) for bone in outer], marrow),
        Layer(scars, marrow / 2),
    ]
    # The fibula is beside the condyle's middle, so a slice there does not contain it.
    share = min(1.0, max(0.0, (parameters.slice_cm - 0.1) / 0.6))
    if share:
        (fibula,) = band(bend.shank(anatomy.FIBULA)[None])
        layers += [
            Layer([fibula], _CORTEX, share),
            Layer([grown(fibula, -_CORTEX_CM)], marrow, share),
        ]
    return layers


def _tendons(bend: _Bend) -> list[Layer]:
    thigh = np.concatenate(
        [bend.patella(anatomy.THIGH_TENDON[:1]), bend.thigh(anatomy.THIGH_TENDON[1:])]
    )
    patella = np.concatenate(
        [
            bend.patella(anatomy.PATELLA_TENDON_TOP),
            bend.shank(anatomy.PATELLA_TENDON_END),
        ]
    )
    return [Layer([*band(thigh[None]), *band(patella[None])], _TENDON)]


def _turned(
    knots: Float[np.ndarray, "k f"], degrees: float
) -> Float[np.ndarray, "k f"]:
    """Turn knots around the joint's pivot, clockwise in the image."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = (knots[:, :2] - anatomy.PIVOT).T
    turned = np.stack([cos * x - sin * y, sin * x + cos * y], axis=1) + anatomy.PIVOT
    return np.concatenate([turned, knots[:, 2:]], axis=1)


def _thicker(
    knots: Float[np.ndarray, "k 2"], parameters: KneeParameters
) -> Float[np.ndarray, "k 2"]:
    """Move the back of thigh and calf outwards, depending on the muscle."""
    x, y = knots.T
    outwards = 0.9 * (parameters.muscle - 0.3) * np.clip((x - 3.5) / 1.5, 0, 1)
    return np.stack([x + outwards, y], axis=1)


def _sliced(
    knots: Float[np.ndarray, "k f"], parameters: KneeParameters
) -> Float[np.ndarray, "k f"]:
    """Shrink the condyle towards its resting point, in slices beside its middle."""
    beside = 0.1 * (parameters.slice_cm / 1.2 + 0.4) ** 2
    x, y = knots[:, 0], knots[:, 1]
    low = np.clip((y + 6.5) / 2, 0, 1)
    shrunk = [0.3 + (x - 0.3) * (1 - beside * low), y, *knots[:, 2:].T]
    return np.stack(shrunk, axis=1)


def _worn(
    knots: Float[np.ndarray, "k f"], parameters: KneeParameters
) -> Float[np.ndarray, "k f"]:
    """Lift the tibial plateau. Thinner cartilage brings the bones closer together."""
    lost = _THICKEST_CM - parameters.cartilage_cm
    x, y = knots[:, 0], knots[:, 1]
    lifted = [x, y - 1.4 * lost * np.clip((2.2 - y) / 1.5, 0, 1), *knots[:, 2:].T]
    return np.stack(lifted, axis=1)


def _wide(knots: Float[np.ndarray, "k 3"], width_cm: float) -> Points:
    """Return the band whose half widths are shares of `width_cm`."""
    return band((knots * (1, 1, width_cm))[None])[0]
