"""Split data by patient. A split stays the same when a data set grows.

The hash of a group's name decides its split. A group is usually a patient. The result
is the same on every machine, for any order and number of the other groups. So no
patient is in two splits, and images that are added later move nobody.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from medjax.errors import UserError

DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType(
    {"train": 0.8, "validation": 0.1, "test": 0.1}
)
SPLITS = tuple(DEFAULT_FRACTIONS)


def position_of(group: str) -> float:
    """Return the position of a group in [0, 1): uniform over groups, fixed for each."""
    digest = hashlib.sha256(group.encode("utf-8")).digest()
    # A float holds 53 bits exactly, so the result is never rounded up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(group: str, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> str:
    """Return the split that a group belongs to.

    Args:
        group: Name of the group to keep together, such as a patient's id.
        fractions: Expected share of the groups per split, in order. They sum to 1.
    """
    position, edge = position_of(group), 0.0
    names = list(fractions)
    for name in names[:-1]:
        edge += fractions[name]
        if position < edge:
            return name
    return names[-1]


def among(
    names: Iterable[str], fractions: Mapping[str, float] = DEFAULT_FRACTIONS
) -> dict[str, float]:
    """Return the shares of some of the splits, in order, scaled to sum to 1.

    A single split gets all, even if its share is 0.

    Raises:
        UserError: If several splits are given and all their shares are 0.
    """
    chosen = [name for name in fractions if name in set(names)]
    if len(chosen) == 1:
        return {chosen[0]: 1.0}
    total = sum(fractions[name] for name in chosen)
    if not total:
        raise UserError(
            f"--split_percent: no share for {' or '.join(chosen)}, but some images "
            "belong there; give one of them a share: --split_percent=80,10,10"
        )
    return {name: fractions[name] / total for name in chosen}


def parse_percent(texts: list[str]) -> dict[str, float]:
    """Read the shares of train, validation and test, given in percent.

    Raises:
        UserError: If they are not three numbers ≥ 0 that sum to 100.
    """
    wrong = UserError(
        f"--split_percent={','.join(texts)}: expected {len(SPLITS)} shares that sum to "
        f"100, for {', '.join(SPLITS)}: --split_percent=80,10,10"
    )
    try:
        shares = [float(text) for text in texts]
    except ValueError as error:
        raise wrong from error
    valid = len(shares) == len(SPLITS) and min(shares) >= 0
    if not valid or not math.isclose(sum(shares), 100):
        raise wrong
    return {name: share / 100 for name, share in zip(SPLITS, shares, strict=True)}
