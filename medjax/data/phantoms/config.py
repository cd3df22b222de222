"""Define the section `data.phantoms` of a config."""

import dataclasses

from medjax.data.phantoms.chest.parameters import (
    FINDING_SHARE,
    FINDINGS,
    check_findings,
)
from medjax.data.phantoms.source import PhantomKind
from medjax.errors import UserError, check_least


@dataclasses.dataclass(frozen=True)
class PhantomsConfig:
    """Settings of the phantoms in the data set.

    Attributes:
        count: Number of phantoms in the training split, at least 1. Validation and test
            have an eighth as many each.
        kind: Body part that phantoms show: "chest", "knee" or "brain".
        findings: Findings that chests may show. A chest that would have another finding
            is drawn without it.
        finding_share: Share of chests with each of these findings, in [0, 1].
    """

    count: int = 4096
    kind: PhantomKind = "chest"
    findings: tuple[str, ...] = FINDINGS
    finding_share: float = FINDING_SHARE

    def __post_init__(self) -> None:
        """Check the values that types do not restrict.

        Raises:
            UserError: If a value is out of its range or a finding is unknown.
        """
        check_least(self, count=1)
        check_findings(self.findings, "findings: ")
        if not 0 <= self.finding_share <= 1:
            raise UserError(
                f"finding_share is {self.finding_share}, expected a fraction in [0, 1]"
            )
