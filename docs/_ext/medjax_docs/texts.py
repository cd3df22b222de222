"""Pieces of Markdown that the writers share."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Written: TypeAlias = tuple[str, list[str]]
"""Markdown, and the problems of the code that it describes."""


def describe(directive: str, name: str, facts: str, text: str) -> list[str]:
    """Return the lines that describe one named thing."""
    return [f"```{{{directive}}} {name}", facts, "", text, "```", ""]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def code(value: object) -> str:
    """Return a Python value as code."""
    return f"`{value!r}`"
