"""Splits by patient, that stay the same when a data set grows.

A group (a patient, usually) goes where the hash of its name says: the same on every
machine, whatever the order and the number of the others. So no patient is on two sides,
and images added later move nobody.
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
    """Return the place of a group in [0, 1): uniform over groups, fixed for each."""
    digest = hashlib.sha256(group.encode("utf-8")).digest()
    # 53 bits are what a float holds exactly, so the result is never rounded up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(group: str, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> str:
    """Return the split that a group belongs to.

    Args:
        group: What must not be torn apart: a patient's id.
        fractions: Expected share of the groups per split, in order; they sum to 1.
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
    """Return the shares of some of the splits, in their order, summing to 1 again.

    A split that is alone gets all, also where its own share is 0.

    Raises:
        UserError: If none of several has a share.
    """
    chosen = [name for name in fractions if name in set(names)]
    if len(chosen) == 1:
        return {chosen[0]: 1.0}
    total = sum(fractions[name] for name in chosen)
    if not total:
        raise UserError(
            f"--split_percent: no share for {' or '.join(chosen)}, where some images "
            "have to go; give one of them a share: --split_percent=80,10,10"
        )
    return {name: fractions[name] / total for name in chosen}


def parse_percent(texts: list[str]) -> dict[str, float]:
    """Read the shares of train, validation and test, given in percent.

    Raises:
        UserError: Unless they are three numbers ≥ 0 that sum to 100.
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
