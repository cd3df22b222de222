"""Phantoms as a data set: random access, by split."""

import dataclasses
import operator
from typing import Any, SupportsIndex

import numpy as np

from medjax.data.captions import caption
from medjax.data.phantoms.parameters import draw_parameters
from medjax.data.phantoms.rendering import render
from medjax.data.splits import SPLITS
from medjax.errors import UserError, nearest

_LEAST = {"size": 8, "count": 0, "seed": 0}


@dataclasses.dataclass(frozen=True)
class PhantomSource:
    """A split of the phantoms of a seed.

    Phantoms are numbered over all splits in turn, so that none is in two, and more of
    them leave the first ones as they are.

    Attributes:
        split: "train", "validation" or "test".
        size: Pixels along a side, 8 or more.
        count: Number of phantoms.
        seed: Which population, 0 or more.
    """

    split: str
    size: int
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the split's name and the numbers.

        Raises:
            UserError: If the split is not known or a number is too small.
        """
        if self.split not in SPLITS:
            raise UserError(
                f"phantoms have no split '{self.split}'; expected one of "
                f"{', '.join(SPLITS)}{nearest(self.split, SPLITS)}"
            )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(
                    f"phantoms of {name} {getattr(self, name)}: must be {least} or more"
                )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Compute a record.

        Returns:
            image (uint8, H W 3), text, labels (NIH's names), id, and parameters: all
            of `ChestParameters` as a dict.

        Raises:
            IndexError: Unless 0 ≤ index < count.
        """
        position = operator.index(index)
        if not 0 <= position < self.count:
            raise IndexError(f"phantom {position} of {self.count}")
        number = position * len(SPLITS) + SPLITS.index(self.split)
        chest = draw_parameters(self.seed, number)
        gray = render(chest, self.size)
        return {
            "image": np.repeat(gray[:, :, None], 3, axis=2),
            "text": caption(
                chest.labels, chest.view, chest.age, chest.sex, sides=chest.sides
            ),
            "labels": chest.labels,
            "id": f"phantom-{self.seed}-{number}",
            "parameters": dataclasses.asdict(chest),
        }
