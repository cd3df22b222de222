"""Limit a source to its first records."""

import dataclasses
from typing import Any

from medjax.data.pipeline import Source
from medjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FirstExamples:
    """The first `count` records of a source."""

    source: Source
    count: int

    def __post_init__(self) -> None:
        """Refuse an empty split.

        Raises:
            UserError: If the source has no record.
        """
        if len(self.source) == 0:
            raise UserError("the validation split is empty; prepare more data")

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[index]
