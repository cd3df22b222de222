"""What came stays, what comes is of one version, and what cannot be had is said."""

import errno
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from medjax import storage
from medjax.data import download as module
from medjax.data.download import download
from medjax.errors import UserError
from tests.server import Files, serve

CONTENT = np.random.default_rng(0).bytes(1_000_003)


@pytest.fixture
def server():
    with serve(Files({"big.tgz": CONTENT})) as files:
        yield files


def held(target):
    part = target.with_name(f"{target.name}.part")
    return part.stat().st_size if part.exists() else 0


def test_a_file_comes_whole_and_alone(server, tmp_path):
    download(server.url, tmp_path / "big.tgz")
    assert (tmp_path / "big.tgz").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["big.tgz"]


def test_a_cut_connection_costs_no_byte_twice(server, tmp_path, caplog):
    server.cut_after = 300_000
    download(server.url, tmp_path / "big.tgz", attempts=2, pause_seconds=0.0)
    assert (tmp_path / "big.tgz").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    assert server.requests == ["", *(f"bytes={n * 300_000}-" for n in (1, 2, 3))]
    assert "ended after 300,000 of 1,000,003 bytes" in caplog.text


@pytest.mark.parametrize("tag_name", ["ETag", "Last-Modified"])
def test_a_later_command_goes_on(server, tmp_path, tag_name):
    server.cut_after, server.tag_name = 400_000, tag_name
    target = tmp_path / "big.tgz"
    with pytest.raises(UserError, match=r"400,000 bytes of it are in .*the same comm"):
        download(server.url, target, attempts=1)
    assert held(target) == 400_000
    assert not target.exists()
    server.cut_after = None
    download(server.url, target, attempts=1)
    assert target.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


@pytest.mark.parametrize(
    "change",
    [
        {"contents": {"big.tgz": CONTENT[::-1]}, "tag": '"two"'},
        {"contents": {"big.tgz": b"short"}, "tag": '"two"'},
        {"ranges": False},
    ],
    ids=["another version", "a shorter version", "no parts"],
)
def test_what_does_not_belong_together_is_not_joined(server, tmp_path, change):
    server.cut_after = 400_000
    target = tmp_path / "big.tgz"
    with pytest.raises(UserError):
        download(server.url, target, attempts=1)
    server.cut_after = None
    for name, value in change.items():
        setattr(server, name, value)
    download(server.url, target, attempts=1)
    assert target.read_bytes() == server.contents["big.tgz"]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_a_version_without_a_name_is_not_continued(server, tmp_path, tag):
    server.cut_after, server.tag = 400_000, tag
    target = tmp_path / "big.tgz"
    with pytest.raises(UserError, match="cannot be fetched"):
        download(server.url, target, attempts=3, pause_seconds=0.0)
    # The first brought something; what follows only brings the same again.
    assert server.requests == [""] * 3


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    target = tmp_path / "big.tgz"
    (tmp_path / "big.tgz.part").write_bytes(CONTENT)
    (tmp_path / "big.tgz.part.tag").write_text(server.tag)
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.sent == 0


def test_a_part_that_is_too_long_is_fetched_again(server, tmp_path):
    target = tmp_path / "big.tgz"
    (tmp_path / "big.tgz.part").write_bytes(CONTENT + b"more")
    (tmp_path / "big.tgz.part.tag").write_text(server.tag)
    download(server.url, target, pause_seconds=0.0)
    assert target.read_bytes() == CONTENT


def test_another_part_than_asked_for_is_not_taken(server, tmp_path):
    server.cut_after, server.shift = 400_000, 7
    with pytest.raises(UserError, match=r"did not send the part from byte 400,000 on"):
        download(server.url, tmp_path / "big.tgz", attempts=2, pause_seconds=0.0)
    assert held(tmp_path / "big.tgz") == 400_000


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429, 500]
    download(server.url, tmp_path / "big.tgz", attempts=4, pause_seconds=0.0)
    assert (tmp_path / "big.tgz").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_said_at_once(server, tmp_path, status):
    server.statuses = [status] * 9
    with pytest.raises(UserError, match=rf"refuses: {status} .*put it into"):
        download(server.url, tmp_path / "big.tgz")
    assert len(server.requests) == 1


def test_nobody_there_is_said_in_one_line(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/big.tgz"
    with pytest.raises(UserError, match=r"cannot be fetched: Connection refused; 0 by"):
        download(url, tmp_path / "big.tgz", attempts=2, pause_seconds=0.0)
    with pytest.raises(UserError, match=r"cannot be fetched: .*[Nn]ame"):
        download("http://nowhere.invalid/x", tmp_path / "x", attempts=1)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_falls_silent_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.3)
    server.cut_after, server.stalls = 400_000, threading.Event()
    with pytest.raises(UserError, match="timed out; 400,000 bytes"):
        download(server.url, tmp_path / "big.tgz", attempts=1)


def test_a_full_disk_is_not_tried_again(server, tmp_path, monkeypatch):
    full = Path("/dev/full").open("ab")  # noqa: SIM115
    monkeypatch.setattr(storage, "appending", lambda _: full)
    with pytest.raises(OSError) as caught:
        download(server.url, tmp_path / "big.tgz")
    assert caught.value.errno == errno.ENOSPC
    assert len(server.requests) == 1
