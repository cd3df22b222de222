"""Divide the data for training and validation into folds, for cross-validation.

A group (a patient or a report) is in one fold only. Its fold depends on the names of
all groups, not on their order or on the machine.

Source: grouped k-fold cross-validation as in scikit-learn's GroupKFold.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from medjax.data.splits import position_of
from medjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Selection:
    """Some records of several sources.

    Attributes:
        sources: Sequences of records.
        places: For each record here, the index of its source and its index there.
    """

    sources: tuple[Any, ...]
    places: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, number = self.places[index]
        return self.sources[source][number]

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of each record; see `PreparedSource.groups`."""
        groups = [source.groups for source in self.sources]
        return tuple(groups[source][number] for source, number in self.places)


def fold_numbers(groups: Sequence[str], folds: int) -> tuple[int, ...]:
    """Return the fold of each record, 0 to `folds` - 1.

    The numbers of groups in the folds differ by at most one.

    Args:
        groups: Group of each record.
        folds: Number of folds, at least 2.

    Raises:
        UserError: If there are fewer groups than folds.
    """
    known = sorted(set(groups), key=position_of)
    if len(known) < folds:
        raise UserError(
            f"config.data.folds={folds}: the data have {len(known)} groups (patients "
            "or reports), and each fold requires one; reduce config.data.folds"
        )
    fold_of = {group: number % folds for number, group in enumerate(known)}
    return tuple(fold_of[group] for group in groups)


def select_fold(
    sources: Sequence[Any], folds: int, fold: int, held_out: bool
) -> Selection:
    """Return the records of one fold, or those of all others.

    Args:
        sources: All records to divide, with ``groups``.
        folds: Number of folds.
        fold: Number of the fold that is held out.
        held_out: Whether to return that fold. False returns the others.

    Raises:
        UserError: If there are fewer groups than folds.
    """
    places = [(s, n) for s, source in enumerate(sources) for n in range(len(source))]
    groups = [group for source in sources for group in source.groups]
    numbers = fold_numbers(groups, folds)
    wanted = [
        place
        for place, number in zip(places, numbers, strict=True)
        if (number == fold) == held_out
    ]
    return Selection(tuple(sources), tuple(wanted))


def check_disjoint(learnt: Iterable[str], tested: Iterable[str]) -> None:
    """Check that no group is in both the training and the test data.

    Raises:
        UserError: If a group is in both. The message names at most three groups.
    """
    both = sorted(set(learnt) & set(tested))
    if both:
        raise UserError(
            f"{len(both)} groups (patients or reports) are in both the training and "
            f"the test data: {', '.join(both[:3])}"
            f"{', …' if len(both) > 3 else ''}; prepare the data again and keep each "
            "group together"
        )
