"""Phrases that a reader stumbles over are in no text that people read."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PHRASES = (
    *("is there", "are there", "is told", "are told", "told of"),
    *("goes on", "go on with", "otherwise", "what is", "of which"),
)
FOLDERS = ("medjax", "configs", "bench", "launch", "notebooks", "docs", ".ci")
TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")
# Pages that commands write, and what is built.
WRITTEN = ("bench/results", "docs/_build")
# File, words around the phrase, and why they may stay.
ALLOWED: dict[tuple[str, str], str] = {}

_PATTERN = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b", re.IGNORECASE)
_QUOTES = re.compile(r"^\w*(\"\"\"|'''|\"|')(.*)\1$", re.DOTALL)
_BETWEEN = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def files() -> list[Path]:
    found = [REPOSITORY / name for name in TOP]
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            name = str(path.relative_to(REPOSITORY))
            kept = path.suffix in (".py", ".md", ".sh", ".ipynb") or folder == ".ci"
            made = name.startswith(WRITTEN) or "__pycache__" in name
            if path.is_file() and kept and not made:
                found.append(path)
    return found


def texts(code: str) -> Iterator[str]:
    """Yield the comments and strings of a Python file; neighbours are one text."""
    text, kind = "", None
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        piece, now = token.string, tokenize.tok_name[token.type]
        if now == "STRING":
            quoted = _QUOTES.match(piece)
            piece = quoted[2] if quoted else piece
        elif now == "FSTRING_MIDDLE":
            now = "STRING"
        elif now == "COMMENT":
            piece = piece.lstrip("#").strip() + " "
        elif token.type in _BETWEEN and not (
            kind == "STRING" and token.type == tokenize.NEWLINE
        ):
            continue
        else:
            now = ""
        if now != kind and text:
            yield text
            text = ""
        text, kind = (text + piece if now else ""), now
    if text:
        yield text


def found_in(path: Path) -> list[str]:
    """Return each phrase of a file, with the words around it."""
    content = path.read_text()
    parts = texts(content) if path.suffix == ".py" else [content]
    hits = []
    for part in parts:
        flat = " ".join(part.split())
        for match in _PATTERN.finditer(flat):
            hits.append(flat[max(0, match.start() - 30) : match.end() + 30])
    return hits


def test_no_text_has_a_phrase_that_readers_stumble_over():
    unused = dict(ALLOWED)
    wrong = []
    for path in files():
        name = str(path.relative_to(REPOSITORY))
        for hit in found_in(path):
            keys = [key for key in ALLOWED if key[0] == name and key[1] in hit]
            for key in keys:
                unused.pop(key, None)
            if not keys:
                wrong.append(f"{name}: …{hit}…")
    assert not wrong, "\n".join(wrong)
    assert not unused, "these exceptions are no longer needed"


@pytest.mark.parametrize(
    "code",
    [
        'raise ValueError("no file is " "there")',
        'raise ValueError(\n    f"{x} is "\n    f"there"\n)',
        '"""It goes\n    on."""',
        "# What\n# is this?",
        "x = 'Otherwise'",
    ],
)
def test_phrases_are_found_across_lines_and_strings(code, tmp_path):
    file = tmp_path / "a.py"
    file.write_text(code)
    assert len(found_in(file)) == 1


@pytest.mark.parametrize(
    "code", ["is_there = goes = on = 1", "x = 'is'\ny = 'there'", "# is\nx = 'there'"]
)
def test_names_and_separate_texts_do_not_count(code, tmp_path):
    file = tmp_path / "a.py"
    file.write_text(code)
    assert not found_in(file)
