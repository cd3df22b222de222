"""Files and folders are never half written, whenever the writer dies."""

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from etils import epath

from medjax import storage
from medjax.errors import UserError
from tests.commands import files
from tests.killed import kills

OLD, NEW = {"a": b"old", "b/c": b"old c"}, {"a": b"new", "d": b"new d"}


def fill(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): data for p, data in files(folder).items()}


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not storage.is_leftover(p))


def test_what_is_written_is_read_back(tmp_path):
    storage.write_text(tmp_path / "new" / "text", "é\r\n")
    storage.write_json(tmp_path / "json", {"b": 1, "a": [2]})
    storage.write_bytes(epath.Path(tmp_path / "bytes"), b"x")
    with storage.appending(tmp_path / "bytes") as file:
        file.write(b"yz")
    storage.truncate(tmp_path / "bytes", 2)
    assert (tmp_path / "new" / "text").read_bytes() == "é\r\n".encode()
    assert (tmp_path / "json").read_text() == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'
    assert (tmp_path / "bytes").read_bytes() == b"xy"
    names = ["bytes", "json", "new"]
    assert [path.name for path in storage.listed(tmp_path)] == names
    below = sorted(storage.files_below(tmp_path))
    assert below == [tmp_path / name for name in ("bytes", "json", "new/text")]
    assert storage.listed(tmp_path, "b*s") == [tmp_path / "bytes"]
    assert storage.listed(tmp_path / "absent") == []


@pytest.mark.parametrize("there", [False, True])
def test_a_file_survives_an_exception(tmp_path, there):
    if there:
        (tmp_path / "x").write_bytes(b"old")
    before = files(tmp_path)

    def interrupted():
        with storage.writing(tmp_path / "x") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files(tmp_path) == before


@pytest.mark.parametrize("there", [False, True])
def test_a_file_survives_a_kill_at_any_step(tmp_path, there):
    path = tmp_path / "x"
    steps = 0

    def write():
        with storage.writing(path) as file:
            file.write(b"n")
            file.flush()
            # A possible kill between two parts of the content.
            os.truncate(file.fileno(), 1)
            file.write(b"ew")

    for steps in kills(write, tmp_path):
        found = path.read_bytes() if path.exists() else None
        assert found == (b"old" if there and steps else None)
        path.write_bytes(b"old") if there else None
    assert steps > 1
    assert content_of(tmp_path) == {"x": b"new"}


def replace(target: Path) -> None:
    with storage.replacing_folder(target) as folder:
        fill(folder, NEW)


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_survives_an_exception(tmp_path, there):
    target = tmp_path / "x"
    if there:
        fill(target, OLD)
    before = files(tmp_path)

    def interrupted():
        with storage.replacing_folder(target) as folder:
            fill(folder, NEW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files(tmp_path) == before
    replace(target)
    assert content_of(tmp_path) == {f"x/{name}": data for name, data in NEW.items()}


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_survives_a_kill_at_any_step(tmp_path, there):
    wholes = []
    home = tmp_path / "home"
    target = home / "x"

    def start():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        fill(target, OLD) if there else None

    # Imports its modules here, so that the forks need not.
    replace(target)
    start()
    for _ in kills(lambda: replace(target), home):
        whole = visible(home)
        wholes += whole
        # The old folder or the new one is found.
        assert len(whole) == 1 if there else whole in ([], ["x"])
        assert all(content_of(home / name) in (OLD, NEW) for name in whole)
        storage.recover(target)
        assert visible(home) == ["x"] * len(whole)
        # The next call succeeds as if no call had been killed.
        replace(target)
        assert content_of(home) == {f"x/{name}": data for name, data in NEW.items()}
        start()
    assert content_of(home) == {f"x/{name}": data for name, data in NEW.items()}
    # One of the kills came when neither folder had its final name.
    assert set(wholes) == ({"x", ".x.before"} if there else {"x"})


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_moved(
    tmp_path, monkeypatch
):
    fill(tmp_path / "x", OLD)
    rename = os.rename

    def failing(path, to):
        if "incomplete" in os.fspath(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(path, to)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        replace(tmp_path / "x")
    assert content_of(tmp_path) == {f"x/{name}": data for name, data in OLD.items()}


def test_one_process_writes_at_a_time(tmp_path):
    with storage.replacing_folder(tmp_path / "x") as folder:
        fill(folder, NEW)
        with pytest.raises(UserError, match="another process is writing it"):
            replace(tmp_path / "x")
    assert visible(tmp_path) == ["x"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_names_that_are_hidden(tmp_path):
    for name in ("x", ".before", ".x.before", ".y.before", ".z.incomplete"):
        (tmp_path / name).mkdir()
    assert visible(tmp_path) == [".y.before", "x"]


@pytest.mark.parametrize("kind", ["file", "folder", "link", "absent"])
def test_anything_is_removed_and_nothing_else(tmp_path, kind):
    path = tmp_path / "x"
    kept = fill(tmp_path / "kept", OLD)
    make = {
        "file": lambda: path.write_bytes(b""),
        "folder": lambda: fill(path, NEW),
        "link": lambda: path.symlink_to(kept),
        "absent": lambda: None,
    }
    make[kind]()
    storage.remove(path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert content_of(kept) == OLD


def test_a_temporary_folder_goes(tmp_path):
    with storage.temporary_folder() as folder:
        fill(folder, OLD)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    storage.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        storage.check_writable(tmp_path / "absent")


def test_json_as_asked(tmp_path):
    storage.write_json(tmp_path / "x", {"b": 1, "a": 2}, indent=None, sort_keys=True)
    assert (tmp_path / "x").read_text() == '{"a": 2, "b": 1}\n'
    assert json.loads((tmp_path / "x").read_text()) == {"a": 2, "b": 1}


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_a_warning_asks_for_one_writer(
    code, tmp_path, monkeypatch, caplog
):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with storage.replacing_folder(tmp_path / "x") as folder:
            fill(folder, NEW)
    assert content_of(tmp_path / "x") == NEW
    assert "has no locks: let only one process" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
