"""Sample the true parameters of a knee phantom.

Lengths are in cm of the body, before the pose scales it. The origin is between femur
and tibia. x points to the back of the knee, and y down. An image shows `FIELD_CM` at
scale 1.
"""

import dataclasses
from typing import Literal

import numpy as np

from medjax.data.phantoms.magnet import Scan, draw_scan
from medjax.data.phantoms.randomness import uniform

Facing = Literal["left", "right"]

FIELD_CM = 15.0
"""Side of the image in cm of the body, at scale 1."""

SLICE_REACH_CM = 1.2
"""Largest distance of a slice from the middle of the condyle."""


@dataclasses.dataclass(frozen=True)
class KneeParameters:
    """Parameters that determine a knee phantom.

    Attributes:
        facing: Side of the image on which the patella is.
        flexion_degrees: Angle between thigh and shank; 0 (straight) to 30.
        cartilage_cm: Thickness of the cartilage on femur and tibia, and 1.3 times as
            much on the patella; 0.10 to 0.30.
        fluid: Fluid in the joint and its pouch above the patella; 0 (little) to 1
            (effusion).
        fat_cm: Thickness of the fat under the skin, at the back; 0.3 to 1.4.
        muscle: Muscle of thigh and calf; 0 (thin) to 1 (thick).
        slice_cm: Distance of the slice from the middle of the condyle; -1.2 to 1.2.
            Negative is towards the other leg, where the condyle is larger. Positive is
            outwards, where the fibula begins.
        contrast: Brightness of fat and marrow; 0 (as gray as muscle) to 1 (much
            brighter).
        scan: Pose, coil and noise.
    """

    facing: Facing
    flexion_degrees: float
    cartilage_cm: float
    fluid: float
    fat_cm: float
    muscle: float
    slice_cm: float
    contrast: float
    scan: Scan


def draw_knee(seed: int, number: int) -> KneeParameters:
    """Sample a phantom. The same arguments give the same phantom on every machine.

    Args:
        seed: Seed of the population, 0 or more.
        number: Number of the phantom, 0 or more.
    """
    random = np.random.default_rng((seed, number, 1))
    return KneeParameters(
        facing="left" if random.random() < 0.5 else "right",
        flexion_degrees=uniform(random, 0, 30),
        cartilage_cm=uniform(random, 0.10, 0.30),
        fluid=uniform(random, 0, 1),
        fat_cm=uniform(random, 0.3, 1.4),
        muscle=uniform(random, 0, 1),
        slice_cm=uniform(random, -SLICE_REACH_CM, SLICE_REACH_CM),
        contrast=uniform(random, 0, 1),
        scan=draw_scan(random),
    )
