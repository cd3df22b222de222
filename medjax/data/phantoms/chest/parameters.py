"""The true parameters of a chest phantom, and how they are drawn.

Lengths are in cm of the body, before the pose scales it. The body's origin lies in the
midline at the level of the pulmonary hila; x points to the patient's left (the right of
the image), y down, z to the front. An image shows 40 cm at scale 1.
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
"""What a phantom may have, by NIH's names."""

CARDIOMEGALY_RATIO = {"PA": 0.50, "AP": 0.55}
"""Cardiothoracic ratio over which a heart is called enlarged; AP views magnify it."""

_MARGIN = 0.03
"""No ratio is drawn closer than this to the limit, so that labels are unambiguous."""

FINDING_SHARE = 0.22
"""Share of chests with each finding, where it is not told."""


@dataclasses.dataclass(frozen=True)
class Effusion:
    """Fluid in the pleural cavity: it blunts the costophrenic angle.

    Attributes:
        side: The patient's side.
        height_cm: Of the meniscus at the lateral wall, over the sulcus; 5.5 to 11.
    """

    side: Side
    height_cm: float


@dataclasses.dataclass(frozen=True)
class Nodule:
    """A ball of soft tissue in a lung.

    Attributes:
        side: The patient's side.
        x_cm: Centre; positive on the patient's left.
        y_cm: Centre; positive below the hila.
        radius_cm: 0.8 to 1.5.
    """

    side: Side
    x_cm: float
    y_cm: float
    radius_cm: float


@dataclasses.dataclass(frozen=True)
class Pneumothorax:
    """Air between the lung and the chest wall, widest at the apex.

    Attributes:
        side: The patient's side.
        width_cm: From the wall to the pleural line; 2 to 5.
    """

    side: Side
    width_cm: float


@dataclasses.dataclass(frozen=True)
class ChestParameters:
    """All that determines a phantom.

    Attributes:
        view: "PA" (standing, arms away) or "AP" (lying, heart magnified).
        age: 18 to 90 years: bones thin out, the aortic arch widens.
        sex: "F" or "M".
        heart_width_ratio: Cardiothoracic ratio as projected: the heart's greatest width
            over the thorax's greatest inner width; 0.38 to 0.70.
        habitus: 0 (slender) to 1 (obese).
        inspiration: 0 (shallow) to 1 (full): how low the diaphragm stands.
        exposure: -1 (under: bright) to 1 (over: dark).
        rotation_degrees: Of the body in the image, clockwise; -12 to 12.
        scale: Size of the body in the image; 0.7 to 1.1.
        shift_x: Of the body to the right, as a share of the image side; -0.1 to 0.1.
        shift_y: The same, down.
        arm_degrees: Angle of the upper arms to the trunk; 8 to 40.
        stomach_gas_cm: Radius of the gas under the left dome; 0 (none) to 2.5.
        texture_seed: Of vessels and quantum noise.
        effusion: None where there is none; so for the next two.
        nodule: See `Nodule`.
        pneumothorax: See `Pneumothorax`.
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
        """The findings, by NIH's names and in their order."""
        enlarged = self.heart_width_ratio > CARDIOMEGALY_RATIO[self.view]
        present = (enlarged, self.effusion, self.nodule, self.pneumothorax)
        return tuple(
            name for name, is_there in zip(FINDINGS, present, strict=True) if is_there
        )

    @property
    def sides(self) -> dict[str, str]:
        """The patient's side of each finding that has one."""
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
        where: What the message begins with.

    Raises:
        UserError: Names the first that is none of them, and the nearest that is.
    """
    for name in names:
        if name not in FINDINGS:
            raise UserError(
                f"{where}phantoms cannot have the finding '{name}'; expected some of "
                f"{', '.join(FINDINGS)}{nearest(name, FINDINGS)}"
            )


def draw_parameters(
    seed: int,
    index: int,
    findings: Collection[str] | None = None,
    possible: Collection[str] = FINDINGS,
    share: float = FINDING_SHARE,
) -> ChestParameters:
    """Draw a phantom; the same arguments give the same one on every machine.

    Args:
        seed: 0 or more; another seed is another population.
        index: Number of the phantom, 0 or more.
        findings: Exactly these findings; None draws them too. What is not asked for
            stays as it is with other findings: the same body, well or ill.
        possible: What may be drawn where `findings` is None. A body that would have had
            another finding is without it; all others stay as they are.
        share: Of bodies with each possible finding where `findings` is None; a larger
            one gives more bodies the finding and takes it from none.

    Raises:
        UserError: If a finding is none of `FINDINGS`.
    """
    check_findings([*(findings or ()), *possible])
    random = np.random.default_rng((seed, index))
    # All draws are made, in this order, whether they are used or not.
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
    """Draw a nodule where lung surrounds it: beside the hila, above a large heart."""
    side = _side(random)
    lowest = -5.0 if enlarged else {"left": -0.5, "right": 2.0}[side]
    y = uniform(random, -9, lowest)
    # Between a lung's hilum and its wall, which recedes towards the apex.
    x = uniform(random, 5.0, 9.8 + 0.22 * min(y, 0))
    return Nodule(
        side=side,
        x_cm=x if side == "left" else -x,
        y_cm=y,
        radius_cm=uniform(random, 0.8, 1.5),
    )
