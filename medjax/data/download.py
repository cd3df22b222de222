"""Fetch one large file over HTTP so that nothing that came is fetched twice.

What has come lies in `NAME.part`, and beside it, in `NAME.part.tag`, what the server
calls this version of the file (its ETag, or when it was changed). A later attempt, in
this process or another, asks for the rest of that very version; where the server has
another one by now, or cannot send parts, it begins again. `NAME` itself appears whole.

Whole means: of the length that the server says. What is in it is for others to check.

Source: RFC 9110, "HTTP semantics", sections 13.1.5 (If-Range) and 14 (Range).
"""

import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

from tqdm import tqdm

from medjax import storage
from medjax.errors import UserError

_LOGGER = logging.getLogger(__name__)
_CHUNK = 1 << 18
_SILENCE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 30.0
_PARTIAL, _UNSATISFIABLE = 206, 416
# Client errors that time may mend: a request that took too long, and too many of them.
_PASSING = (408, 429)


class _Broken(Exception):
    """The connection failed in a way that another attempt may not."""


def download(
    url: str, target: Path, attempts: int = 6, pause_seconds: float = 1.0
) -> None:
    """Fetch `url` to `target`, going on where an earlier attempt ended.

    Args:
        url: Where the file is, by HTTP or HTTPS; proxies are the environment's.
        target: Where it shall be; its folder is there.
        attempts: How many in a row may bring nothing.
        pause_seconds: How long to wait after the first of these; it doubles, to 30 s.

    Raises:
        UserError: If the server refuses, or cannot be reached; what came is kept.
        OSError: If the disk is full or fails.
    """
    part = target.with_name(f"{target.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part, target.name)
            break
        except _Broken as error:
            failures = 1 if _size(part) > before else failures + 1
            kept = f"{_size(part):,} bytes of it are in {part}"
            if failures >= attempts:
                raise UserError(
                    f"{url}: cannot be fetched: {error}; {kept}: the same command goes "
                    f"on from there, or put the file into {target.parent} yourself"
                ) from error
            pause = min(pause_seconds * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
            _LOGGER.warning("%s: %s; %s; trying again", url, error, kept)
            time.sleep(pause)
    storage.remove(target)
    storage.rename(part, target)
    storage.remove(_tag_file(part))


def _fetch_rest(url: str, part: Path, name: str) -> None:
    """Append to `part` what it lacks, or begin again.

    Raises:
        _Broken: If the connection fails or ends early.
    """
    held = _size(part)
    try:
        response = _open(url, part, held)
    except urllib.error.HTTPError as error:
        if error.code == _UNSATISFIABLE and _total(error.headers) == held:
            return
        if error.code == _UNSATISFIABLE:
            storage.remove(_tag_file(part))
        elif error.code < 500 and error.code not in _PASSING:
            raise UserError(
                f"{url}: the server refuses: {error.code} {error.reason}; put the file "
                f"into {part.parent} yourself"
            ) from error
        raise _Broken(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error
    with response:
        if response.status != _PARTIAL:
            # Emptied first, so that no bytes of another version get this one's name.
            held = 0
            storage.write_bytes(part, b"")
            storage.write_text(_tag_file(part), _tag(response.headers))
        total = _total(response.headers)
        _copy(response, part, held, total, name)
    if total is not None and _size(part) != total:
        raise _Broken(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _open(url: str, part: Path, held: int) -> http.client.HTTPResponse:
    """Ask for the file, or for what comes after the first `held` bytes."""
    headers = {"User-Agent": "medjax", "Accept-Encoding": "identity"}
    file = _tag_file(part)
    if held and file.is_file() and (tag := file.read_text(encoding="utf-8")):
        headers |= {"Range": f"bytes={held}-", "If-Range": tag}
    request = urllib.request.Request(url, headers=headers)
    response = urllib.request.urlopen(request, timeout=_SILENCE_SECONDS)
    if response.status == _PARTIAL and _first_byte(response.headers) != held:
        response.close()
        raise _Broken(f"the server sent another part than from byte {held:,} on")
    return response


def _copy(
    response: http.client.HTTPResponse,
    part: Path,
    held: int,
    total: int | None,
    name: str,
) -> None:
    """Write what comes after the first `held` bytes, with a progress bar."""
    bar = tqdm(
        total=total, initial=held, desc=name, unit="B", unit_scale=True, delay=1.0
    )
    with storage.appending(part) as file, bar:
        while True:
            # Apart from writing: a disk that fails is not mended by trying again.
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(_reason(error)) from error
            if not chunk:
                return
            file.write(chunk)
            bar.update(len(chunk))


def _tag(headers: Message) -> str:
    """Return what tells this version of the file from others; "" if nothing does."""
    tag = headers.get("ETag", "")
    # A weak one may be shared by files that differ, and If-Range does not take it.
    strong = tag if not tag.startswith("W/") else ""
    return strong or headers.get("Last-Modified", "")


def _total(headers: Message) -> int | None:
    """Return how long the whole file is, or None where the server does not say."""
    match = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    length = match[1] if match else headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _first_byte(headers: Message) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _reason(error: Exception) -> str:
    """Return what an error says, without urllib's wrapping."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    said = getattr(inner, "strerror", None) or str(inner)
    return said or type(inner).__name__
