"""Sample the true parameters of a chest phantom.

Lengths are in cm of the body, before the pose scales it. The body's origin is on the
midline at the level of the pulmonary hila. x points to the patient's left (the right of
the image), y down, and z to the front. An image shows 40 cm at scale 1.
"""

import dataclasses
from collections.abc import Collection
from typing import Literal

import numpy as np

from medjax.data.phantoms.randomness import uniform
from medjax.errors import UserError, nearest

Side = Literal["left", "right"]
View = Literal["PA", "AP"]
Sex = Literal["F", "M"]

FINDINGS = ("Cardiomegaly", "Effusion", "Nodule", "Pneumothorax")
"""Findings that a phantom may have, by NIH's names."""

CARDIOMEGALY_RATIO = {"PA": 0.50, "AP": 0.55}
"""Cardiothoracic ratio above which a heart is enlarged. AP views magnify the heart."""

_MARGIN = 0.03
"""Smallest distance of a ratio from the limit, so that labels are unambiguous."""

FINDING_SHARE = 0.22
"""Default share of chests with each finding."""


@dataclasses.dataclass(frozen=True)
class Effusion:
    """Fluid in the pleural cavity. It blunts the costophrenic angle.

    Attributes:
        side: Side of the patient.
        height_cm: Height of the meniscus at the lateral wall, above the sulcus; 5.5 to
            11.
    """

    side: Side
    height_cm: float


@dataclasses.dataclass(frozen=True)
class Nodule:
    """A ball of soft tissue in a lung.

    Attributes:
        side: Side of the patient.
        x_cm: x of the centre, positive on the patient's left.
        y_cm: y of the centre, positive below the hila.
        radius_cm: Radius; 0.8 to 1.5.
    """

    side: Side
    x_cm: float
    y_cm: float
    radius_cm: float


@dataclasses.dataclass(frozen=True)
class Pneumothorax:
    """Air between the lung and the chest wall, widest at the apex.

    Attributes:
        side: Side of the patient.
        width_cm: Distance from the wall to the pleural line; 2 to 5.
    """

    side: Side
    width_cm: float


@dataclasses.dataclass(frozen=True)
class ChestParameters:
    """Parameters that determine a chest phantom.

    Attributes:
        view: "PA" (standing, arms away) or "AP" (lying, heart magnified).
        age: Age in years; 18 to 90. With it, bones thin out and the aortic arch widens.
        sex: "F" or "M".
        heart_width_ratio: Projected cardiothoracic ratio: the heart's greatest width
            over the thorax's greatest inner width; 0.38 to 0.70.
        habitus: Build of the body; 0 (slender) to 1 (obese).
        inspiration: Depth of the breath; 0 (shallow) to 1 (full, with a low diaphragm).
        exposure: Exposure; -1 (under: bright) to 1 (over: dark).
        rotation_degrees: Rotation of the body in the image, clockwise; -12 to 12.
        scale: Size of the body in the image; 0.7 to 1.1.
        shift_x: Shift of the body to the right, as a share of the image side; -0.1 to
            0.1.
        shift_y: Shift of the body down, as a share of the image side; -0.1 to 0.1.
        arm_degrees: Angle of the upper arms to the trunk; 8 to 40.
        stomach_gas_cm: Radius of the gas under the left dome; 0 (no gas) to 2.5.
        texture_seed: Seed of vessels and quantum noise.
        effusion: Effusion. None means no effusion.
        nodule: Nodule. None means no nodule.
        pneumothorax: Pneumothorax. None means no pneumothorax.
    """

    view: View
    age: int
    sex: Sex
    heart_width_ratio: float
    habitus: float
    inspiration: float
    exposure: float
    rotation_degrees: float
    scale: float
    shift_x: float
    shift_y: float
    arm_degrees: float
    stomach_gas_cm: float
    texture_seed: int
    effusion: Effusion | None = None
    nodule: Nodule | None = None
    pneumothorax: Pneumothorax | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Findings of the phantom, in the order of `FINDINGS`."""
        enlarged = self.heart_width_ratio > CARDIOMEGALY_RATIO[self.view]
        present = (enlarged, self.effusion, self.nodule, self.pneumothorax)
        return tuple(
            name for name, is_there in zip(FINDINGS, present, strict=True) if is_there
        )

    @property
    def sides(self) -> dict[str, str]:
        """Side of the patient, for each finding that has a side."""
        found = (self.effusion, self.nodule, self.pneumothorax)
        return {
            name: finding.side
            for name, finding in zip(FINDINGS[1:], found, strict=True)
            if finding
        }


def check_findings(names: Collection[str], where: str = "") -> None:
    """Check that phantoms can have these findings.

    Args:
        names: Some of `FINDINGS`.
        where: Beginning of the error message.

    Raises:
        UserError: If a finding is unknown. The message names the nearest known one.
    """
    for name in names:
        if name not in FINDINGS:
            raise UserError(
                f"{where}phantoms cannot have the finding '{name}'; expected findings "
                f"of {', '.join(FINDINGS)}{nearest(name, FINDINGS)}"
            )


def draw_parameters(
    seed: int,
    index: int,
    findings: Collection[str] | None = None,
    possible: Collection[str] = FINDINGS,
    share: float = FINDING_SHARE,
) -> ChestParameters:
    """Sample a phantom. The same arguments give the same phantom on every machine.

    Args:
        seed: Seed of the population, 0 or more.
        index: Number of the phantom, 0 or more.
        findings: Exact findings of the phantom. None samples the findings, too.
            Findings do not change the rest of the body.
        possible: Findings to sample from if `findings` is None. All other findings are
            removed. Bodies without these other findings do not change.
        share: Share of bodies with each possible finding, if `findings` is None. If the
            share grows, more bodies have the finding, and no body loses it.

    Raises:
        UserError: If a finding is not in `FINDINGS`.
    """
    check_findings([*(findings or ()), *possible])
    random = np.random.default_rng((seed, index))
    # The order of random numbers never changes, even if some are not used.
    drawn = [name for name in FINDINGS if random.random() < share]
    present = findings
    if present is None:
        present = [name for name in drawn if name in possible]
    view: View = "PA" if random.random() < 0.65 else "AP"
    parameters = ChestParameters(
        view=view,
        age=int(uniform(random, 18, 91)),
        sex="F" if random.random() < 0.5 else "M",
        heart_width_ratio=_heart_width_ratio(random, view, "Cardiomegaly" in present),
        habitus=uniform(random, 0, 1),
        inspiration=uniform(random, *((0.4, 1) if view == "PA" else (0, 0.7))),
        exposure=uniform(random, -1, 1),
        rotation_degrees=uniform(random, -12, 12),
        scale=uniform(random, 0.7, 1.1),
        shift_x=uniform(random, -0.1, 0.1),
        shift_y=uniform(random, -0.1, 0.1),
        arm_degrees=uniform(random, 8, 40),
        stomach_gas_cm=max(0.0, uniform(random, -1, 2.5)),
        texture_seed=int(random.random() * 2**31),
    )
    effusion = Effusion(_side(random), uniform(random, 5.5, 11))
    nodule = _nodule(random, "Cardiomegaly" in present)
    pneumothorax = Pneumothorax(_side(random), uniform(random, 2, 5))
    return dataclasses.replace(
        parameters,
        effusion=effusion if "Effusion" in present else None,
        nodule=nodule if "Nodule" in present else None,
        pneumothorax=pneumothorax if "Pneumothorax" in present else None,
    )


def _side(random: np.random.Generator) -> Side:
    return "left" if random.random() < 0.5 else "right"


def _heart_width_ratio(
    random: np.random.Generator, view: View, enlarged: bool
) -> float:
    limit, share = CARDIOMEGALY_RATIO[view], random.random()
    if enlarged:
        return limit + _MARGIN + share * (0.70 - limit - _MARGIN)
    return limit - _MARGIN - share * 0.09


def _nodule(random: np.random.Generator, enlarged: bool) -> Nodule:
    """Sample a nodule inside a lung, beside the hilum and above an enlarged heart."""
    side = _side(random)
    lowest = -5.0 if enlarged else {"left": -0.5, "right": 2.0}[side]
    y = uniform(random, -9, lowest)
    # x is between a lung's hilum and its wall, which recedes towards the apex.
    x = uniform(random, 5.0, 9.8 + 0.22 * min(y, 0))
    return Nodule(
        side=side,
        x_cm=x if side == "left" else -x,
        y_cm=y,
        radius_cm=uniform(random, 0.8, 1.5),
    )
