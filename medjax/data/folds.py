"""Folds for cross-validation: what is not for testing, divided by group.

A group (a patient, a report) is in one fold only, and which one depends on the names of
all groups, but neither on their order nor on the machine.

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
        places: Of each record here: which source, and its number there.
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
        """What each record belongs to; see `PreparedSource.groups`."""
        groups = [source.groups for source in self.sources]
        return tuple(groups[source][number] for source, number in self.places)


def fold_numbers(groups: Sequence[str], folds: int) -> tuple[int, ...]:
    """Return the fold of each record, 0 to `folds` - 1.

    Folds have equally many groups, or one more.

    Args:
        groups: What each record belongs to.
        folds: How many there are, at least 2.

    Raises:
        UserError: If there are fewer groups than folds.
    """
    known = sorted(set(groups), key=position_of)
    if len(known) < folds:
        raise UserError(
            f"config.data.folds={folds}: the data have {len(known)} groups (patients "
            "or reports), and each fold needs one; expected fewer folds"
        )
    fold_of = {group: number % folds for number, group in enumerate(known)}
    return tuple(fold_of[group] for group in groups)


def select_fold(
    sources: Sequence[Any], folds: int, fold: int, held_out: bool
) -> Selection:
    """Return the records of one fold, or those of all others.

    Args:
        sources: With ``groups``; all that is to be divided.
        folds: How many there are.
        fold: Which one is held out.
        held_out: Whether that one is wanted, or the rest.

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
    """Check that no group is on two sides.

    Raises:
        UserError: Names some that are.
    """
    both = sorted(set(learnt) & set(tested))
    if both:
        raise UserError(
            f"{len(both)} groups (patients or reports) are among both those to learn "
            f"from and those to test on: {', '.join(both[:3])}"
            f"{', …' if len(both) > 3 else ''}; prepare the data again, keeping each "
            "together"
        )
