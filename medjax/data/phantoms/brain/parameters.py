"""Sample the true parameters of a brain phantom.

Lengths are in cm of the body, before the pose scales it. The origin is the middle of
the brain. x points to the right of the image, and y down, to the back of the head. An
image shows `FIELD_CM` at scale 1.
"""

import dataclasses
from typing import Literal

import numpy as np

from medjax.data.phantoms.magnet import Scan, draw_scan
from medjax.data.phantoms.randomness import uniform

Diagnosis = Literal["AD", "NC"]

DIAGNOSES: tuple[Diagnosis, ...] = ("AD", "NC")
"""Classes by ADNI's names: Alzheimer's disease and normal control."""

FIELD_CM = 22.5
"""Side of the image in cm of the body, at scale 1."""

VENTRICLE_SHARE_LIMIT = 0.075
"""Share of the brain's area above which ventricles are large: "AD"."""

_MARGIN = 0.02
"""Smallest distance of a share from the limit, so that classes are unambiguous."""

_SHARES = {"NC": (0.03, VENTRICLE_SHARE_LIMIT - _MARGIN),
           "AD": (VENTRICLE_SHARE_LIMIT + _MARGIN, 0.14)}  # fmt: skip
_SULCI_CM = {"NC": (0.08, 0.14), "AD": (0.14, 0.24)}


@dataclasses.dataclass(frozen=True)
class BrainParameters:
    """Parameters that determine a brain phantom.

    Attributes:
        ventricle_share: Area of the lateral and third ventricles over the area inside
            the skull, in this slice; 0.03 to 0.055 or 0.095 to 0.14.
        sulcus_cm: Width of the sulci; 0.08 to 0.24, larger if the ventricles are large.
        width_cm: Width of the inside of the skull; 12.6 to 14.0.
        length_cm: Length of the inside of the skull, front to back; 15.6 to 17.4.
        level: Level of the slice, from 0 (through thalamus and basal ganglia) to 1
            (through the bodies of the ventricles above them).
        asymmetry: Share of the width by which the right ventricle (of the image) is
            larger than the left one; -0.15 to 0.15.
        scalp_cm: Thickness of the scalp; 0.4 to 0.7.
        bone_cm: Thickness of the skull; 0.55 to 0.75.
        contrast: Contrast between gray and white matter; 0 (weak) to 1.
        folding_seed: Seed of the sulci's places and courses.
        scan: Pose, coil and noise.
    """

    ventricle_share: float
    sulcus_cm: float
    width_cm: float
    length_cm: float
    level: float
    asymmetry: float
    scalp_cm: float
    bone_cm: float
    contrast: float
    folding_seed: int
    scan: Scan

    @property
    def diagnosis(self) -> Diagnosis:
        """Class, which follows from the ventricles."""
        return "AD" if self.ventricle_share > VENTRICLE_SHARE_LIMIT else "NC"


def draw_brain(
    seed: int, number: int, diagnosis: Diagnosis | None = None
) -> BrainParameters:
    """Sample a phantom. The same arguments give the same phantom on every machine.

    Args:
        seed: Seed of the population, 0 or more.
        number: Number of the phantom, 0 or more.
        diagnosis: Class of the phantom. None samples the class, too. The class
            changes only ventricles and sulci.
    """
    random = np.random.default_rng((seed, number, 2))
    drawn: Diagnosis = "AD" if random.random() < 0.5 else "NC"
    kind = diagnosis or drawn
    return BrainParameters(
        ventricle_share=uniform(random, *_SHARES[kind]),
        sulcus_cm=uniform(random, *_SULCI_CM[kind]),
        width_cm=uniform(random, 12.6, 14.0),
        length_cm=uniform(random, 15.6, 17.4),
        level=uniform(random, 0, 1),
        asymmetry=uniform(random, -0.15, 0.15),
        scalp_cm=uniform(random, 0.4, 0.7),
        bone_cm=uniform(random, 0.55, 0.75),
        contrast=uniform(random, 0, 1),
        folding_seed=int(random.random() * 2**31),
        scan=draw_scan(random),
    )
