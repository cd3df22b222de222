"""Read texts from the user: prompts, tables, captions, JSON, in any usual encoding.

A byte order mark sets the encoding and is removed. Without it, a text is UTF-8. Line
ends of Windows and of old Macs become those of Unix. So a text is the same whichever
program saved it.
"""

import codecs
import re
from pathlib import Path
from typing import Any

from medjax.errors import UserError

# UTF-32 comes first, because its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = re.compile("\r\n?")


def decode(encoded: bytes, where: str, keep_damage: bool = False) -> str:
    """Return the text of a file's bytes, with the line ends of Unix.

    Args:
        encoded: Bytes of the file.
        where: Name of the file in errors.
        keep_damage: Whether bytes that are not UTF-8 become lone surrogates, for a
            reader that leaves out only their lines.

    Raises:
        UserError: Names the first byte that is not text, and its line.
    """
    mark, encoding = next(
        ((mark, name) for mark, name in _MARKS if encoded.startswith(mark)),
        (b"", "utf-8"),
    )
    content = encoded[len(mark) :]
    tolerant = keep_damage and encoding == "utf-8"
    try:
        text = content.decode(encoding, "surrogateescape" if tolerant else "strict")
    except UnicodeDecodeError as error:
        read = content[: error.start].decode(encoding, "replace")
        line = _LINE_END.sub("\n", read).count("\n") + 1
        raise UserError(
            f"{where}: line {line}: byte {content[error.start]:#04x} is not "
            f"{encoding.upper()}. Expected text in UTF-8; save the file as UTF-8"
        ) from error
    text = _LINE_END.sub("\n", text)
    if "\0" in text and not keep_damage:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(
            f"{where}: line {line}: holds a NUL character. Expected text in UTF-8; "
            "this is not text, or it is UTF-16 without a byte order mark"
        )
    return text


def read_text(path: str | Path, where: str = "", keep_damage: bool = False) -> str:
    """Return the text of a file.

    Args:
        path: The file.
        where: Name of the file in errors. Empty means its path.
        keep_damage: Whether to keep bytes that are not UTF-8; see `decode`.

    Raises:
        UserError: If the file cannot be read, or is not text.
    """
    where = where or str(path)
    try:
        encoded = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from error
    return decode(encoded, where, keep_damage)


def lines(text: str) -> list[str]:
    """Return the lines of a text.

    Unlike `str.splitlines`, it splits only at line ends. Captions may contain other
    characters at which that splits, such as U+2028 or a form feed.
    """
    return text.removesuffix("\n").split("\n")


def as_text(value: Any) -> str | None:
    """Return a JSON value as text: "" for null, None for a list or an object."""
    if value is None:
        return ""
    return None if isinstance(value, list | dict) else str(value)
