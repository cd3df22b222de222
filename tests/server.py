"""A file server on this machine that follows, breaks or ignores rules of HTTP."""

import dataclasses
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Files:
    """The files and how to serve them; `requests` has each request's Range header."""

    contents: dict[str, bytes]
    tag: str = '"one"'
    tag_name: str = "ETag"
    ranges: bool = True
    # Number of bytes after which a response ends, as if the connection were cut.
    cut_after: int | None = None
    # Status codes of the first requests, sent instead of the file.
    statuses: list[int] = dataclasses.field(default_factory=list)
    # Added to the start of a requested range.
    shift: int = 0
    # Set when a response that hangs may end.
    stalls: threading.Event | None = None
    address: str = ""
    requests: list[str] = dataclasses.field(default_factory=list)
    sent: int = 0

    @property
    def url(self) -> str:
        """Address of the only file."""
        return f"{self.address}/{next(iter(self.contents))}"


@contextmanager
def serve(files: Files) -> Iterator[Files]:
    """Serve the files on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            _answer(self, files)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    files.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield files
    finally:
        if files.stalls:
            files.stalls.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(handler: BaseHTTPRequestHandler, files: Files) -> None:
    content = files.contents.get(handler.path.lstrip("/"))
    asked = handler.headers.get("Range", "")
    files.requests.append(asked)
    status = files.statuses.pop(0) if files.statuses else 200
    if content is None or status != 200:
        handler.send_error(404 if content is None else status)
        return
    start = 0
    same = handler.headers.get("If-Range") in (None, files.tag)
    if asked and files.ranges and same:
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        status = 206 if start < len(content) else 416
    start += files.shift if status == 206 else 0
    rest = content[start:] if status != 416 else b""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(rest)))
    if files.tag:
        handler.send_header(files.tag_name, files.tag)
    if status == 206:
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.send_header("Content-Range", span)
    elif status == 416:
        handler.send_header("Content-Range", f"bytes */{len(content)}")
    handler.end_headers()
    rest = rest[: files.cut_after]
    # Counted first, because the client may check as soon as it has all bytes.
    files.sent += len(rest)
    handler.wfile.write(rest)
    if files.stalls:
        handler.wfile.flush()
        files.stalls.wait(20)
