"""Read the pages of the documentation: their code blocks, and the commands in them."""

import dataclasses
import re
import shlex
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
_FENCE = re.compile(r"^```(\w*)\s*$")
_REASON = re.compile(r"^<!-- test: (.+) -->$")


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: The page, relative to the repository.
        line: Line of its first line of code, from 1.
        language: As ``sh`` or ``python``.
        text: The code.
        reason: Words of the comment ``<!-- test: … -->`` above it; "" without one.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a block in ``sh``."""
        joined = self.text.replace("\\\n", " ")
        split = (shlex.split(line, comments=True) for line in joined.splitlines())
        return [words for words in split if words]


def pages() -> list[Path]:
    """Return README, CONTRIBUTING, SECURITY and the pages of docs/."""
    found = [p for p in DOCS.rglob("*.md") if "_build" not in p.parts]
    top = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
    return [*(REPOSITORY / name for name in top), *sorted(found)]


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page, in order."""
    found: list[Block] = []
    reason, language, start, code = "", "", 0, None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if code is not None and line.strip() != "```":
            code.append(line)
        elif code is not None:
            name = str(page.relative_to(REPOSITORY))
            found.append(Block(name, start, language, "\n".join(code), reason))
            reason, code = "", None
        elif fence := _FENCE.match(line):
            language, start, code = fence[1], number + 1, []
        elif mark := _REASON.match(line):
            reason = mark[1]
        elif line.strip():
            reason = ""
    return found
