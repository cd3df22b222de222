"""Give random access to the phantoms of a split."""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, SupportsIndex

import numpy as np
from jaxtyping import UInt8

from medjax.data.captions import caption
from medjax.data.phantoms.brain.parameters import DIAGNOSES, draw_brain
from medjax.data.phantoms.brain.rendering import render_brain
from medjax.data.phantoms.chest.parameters import (
    FINDING_SHARE,
    FINDINGS,
    check_findings,
    draw_parameters,
)
from medjax.data.phantoms.chest.rendering import render
from medjax.data.phantoms.knee.parameters import draw_knee
from medjax.data.phantoms.knee.rendering import render_knee
from medjax.data.splits import SPLITS
from medjax.errors import UserError, nearest

PhantomKind = Literal["chest", "knee", "brain"]

_LEAST = {"size": 8, "count": 0, "seed": 0}
_VENTRICLES = {"AD": "large", "NC": "small"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of phantoms.

    Attributes:
        description: One sentence about all phantoms of the kind.
        label_names: All possible labels.
        record: Function that returns a record without its id. Its arguments are seed,
            phantom number, image size, possible findings and the share of each finding.
    """

    description: str
    label_names: tuple[str, ...]
    record: Callable[[int, int, int, tuple[str, ...], float], dict[str, Any]]


def _chest(
    seed: int, number: int, size: int, findings: tuple[str, ...], share: float
) -> dict[str, Any]:
    chest = draw_parameters(seed, number, possible=findings, share=share)
    text = caption(chest.labels, chest.view, chest.age, chest.sex, sides=chest.sides)
    return _record(chest, render(chest, size), text, chest.labels)


def _knee(
    seed: int, number: int, size: int, findings: tuple[str, ...], share: float
) -> dict[str, Any]:
    del findings, share
    knee = draw_knee(seed, number)
    return _record(knee, render_knee(knee, size), "sagittal MRI of a knee", ())


def _brain(
    seed: int, number: int, size: int, findings: tuple[str, ...], share: float
) -> dict[str, Any]:
    del findings, share
    brain = draw_brain(seed, number)
    text = f"axial MRI of a brain with {_VENTRICLES[brain.diagnosis]} ventricles"
    return _record(brain, render_brain(brain, size), text, (brain.diagnosis,))


def _record(
    parameters: Any, gray: UInt8[np.ndarray, "h w"], text: str, labels: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "image": np.repeat(gray[:, :, None], 3, axis=2),
        "text": text,
        "labels": labels,
        "parameters": dataclasses.asdict(parameters),
    }


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "chest": Kind(
            "Frontal chest radiographs computed from ellipsoids.", FINDINGS, _chest
        ),
        "knee": Kind("Sagittal MR images of knees, computed from outlines.", (), _knee),
        "brain": Kind(
            "Axial T1-weighted MR images of brains, computed from outlines; the size "
            "of the ventricles is the class.",
            DIAGNOSES,
            _brain,
        ),
    }
)
"""All kinds of phantoms."""


@dataclasses.dataclass(frozen=True)
class PhantomSource:
    """A split of the phantoms of a seed.

    Phantom numbers are assigned to the splits in turn. So no phantom is in two splits,
    and a larger count does not change the first phantoms.

    Attributes:
        split: "train", "validation" or "test".
        size: Pixels along a side, 8 or more.
        count: Number of phantoms.
        seed: Seed of the population, 0 or more.
        kind: Body part that phantoms show: "chest", "knee" or "brain".
        findings: Findings that chests may have; see `draw_parameters`.
        finding_share: Share of chests with each of these findings, in [0, 1].
    """

    split: str
    size: int
    count: int
    seed: int = 0
    kind: str = "chest"
    findings: tuple[str, ...] = FINDINGS
    finding_share: float = FINDING_SHARE

    def __post_init__(self) -> None:
        """Check the names and the numbers.

        Raises:
            UserError: If a name is unknown or a number is too small.
        """
        for name, known in (("split", SPLITS), ("kind", KINDS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(
                    f"phantoms have no {name} '{value}'; expected one of "
                    f"{', '.join(known)}{nearest(value, known)}"
                )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(
                    f"phantoms with {name} {getattr(self, name)}: expected at least "
                    f"{least}"
                )
        check_findings(self.findings)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Compute a record.

        Returns:
            image (uint8, H W 3), text, labels (NIH's findings for a chest, ADNI's class
            for a brain, none for a knee), id, and parameters: all of `ChestParameters`,
            `KneeParameters` or `BrainParameters` as a dict.

        Raises:
            IndexError: If the index is not in [0, count).
        """
        position = operator.index(index)
        if not 0 <= position < self.count:
            raise IndexError(f"phantom {position} of {self.count}")
        number = self._number(position)
        record = KINDS[self.kind].record(
            self.seed, number, self.size, self.findings, self.finding_share
        )
        return record | {"id": self._id(number)}

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of each record: its id, because each record shows another body."""
        return tuple(self._id(self._number(i)) for i in range(self.count))

    def _number(self, position: int) -> int:
        return position * len(SPLITS) + SPLITS.index(self.split)

    def _id(self, number: int) -> str:
        return f"phantom-{self.seed}-{number}"
