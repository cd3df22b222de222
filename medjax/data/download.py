"""Fetch one large file over HTTP without fetching any part of it twice.

Received bytes are in `NAME.part`. `NAME.part.tag` has the server's tag of this version
of the file: its ETag or its modification time. A later attempt, in this process or
another, requests the rest of the same version. If the server has another version now,
or cannot send parts, the download starts again. `NAME` appears when it is complete.

A file is complete if it has the length that the server reports. Callers check its
content.

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
# Client errors that may pass with time: request timeout and too many requests.
_PASSING = (408, 429)


class _Broken(Exception):
    """The connection failed, but another attempt may succeed."""


def download(
    url: str, target: Path, attempts: int = 6, pause_seconds: float = 1.0
) -> None:
    """Fetch `url` to `target`, and resume an earlier attempt.

    Args:
        url: HTTP or HTTPS address of the file. Proxies come from the environment.
        target: Path of the complete file. Its folder must exist.
        attempts: Number of failures in a row, without new bytes, that is fatal.
        pause_seconds: Wait after the first of these, in seconds. It doubles, up to 30.

    Raises:
        UserError: If the server refuses or cannot be reached. Received bytes are kept.
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
                    f"{url}: cannot be fetched: {error}; {kept}; run the same command "
                    f"again to resume, or put the file into {target.parent} yourself"
                ) from error
            pause = min(pause_seconds * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
            _LOGGER.warning("%s: %s; %s; trying again", url, error, kept)
            time.sleep(pause)
    storage.remove(target)
    storage.rename(part, target)
    storage.remove(_tag_file(part))


def _fetch_rest(url: str, part: Path, name: str) -> None:
    """Append the missing bytes to `part`, or start again.

    Raises:
        _Broken: If the connection fails or ends early.
        UserError: If the server refuses.
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
                f"{url}: the server refuses: {error.code} {error.reason}; get the file "
                f"another way and put it into {part.parent}"
            ) from error
        raise _Broken(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error
    with response:
        if response.status != _PARTIAL:
            # Empty the file first, so that bytes of another version never get this tag.
            held = 0
            storage.write_bytes(part, b"")
            storage.write_text(_tag_file(part), _tag(response.headers))
        total = _total(response.headers)
        _copy(response, part, held, total, name)
    if total is not None and _size(part) != total:
        raise _Broken(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _open(url: str, part: Path, held: int) -> http.client.HTTPResponse:
    """Request the file, or its bytes after the first `held`."""
    headers = {"User-Agent": "medjax", "Accept-Encoding": "identity"}
    file = _tag_file(part)
    if held and file.is_file() and (tag := file.read_text(encoding="utf-8")):
        headers |= {"Range": f"bytes={held}-", "If-Range": tag}
    request = urllib.request.Request(url, headers=headers)
    response = urllib.request.urlopen(request, timeout=_SILENCE_SECONDS)
    if response.status == _PARTIAL and _first_byte(response.headers) != held:
        response.close()
        raise _Broken(f"the server did not send the part from byte {held:,} on")
    return response


def _copy(
    response: http.client.HTTPResponse,
    part: Path,
    held: int,
    total: int | None,
    name: str,
) -> None:
    """Write the bytes after the first `held`, with a progress bar."""
    bar = tqdm(
        total=total, initial=held, desc=name, unit="B", unit_scale=True, delay=1.0
    )
    with storage.appending(part) as file, bar:
        while True:
            # Only reading is tried again: another attempt cannot repair a disk.
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(_reason(error)) from error
            if not chunk:
                return
            file.write(chunk)
            bar.update(len(chunk))


def _tag(headers: Message) -> str:
    """Return the tag that identifies this version of the file; "" if none does."""
    tag = headers.get("ETag", "")
    # Different files may share a weak tag, and If-Range does not accept it.
    strong = tag if not tag.startswith("W/") else ""
    return strong or headers.get("Last-Modified", "")


def _total(headers: Message) -> int | None:
    """Return the length of the whole file in bytes; None if the server omits it."""
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
    """Return the text of an error without urllib's wrapping."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    said = getattr(inner, "strerror", None) or str(inner)
    return said or type(inner).__name__
