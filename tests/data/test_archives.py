"""Archives come out whole, or nothing does; nothing ever lands beside the folder."""

import io
import tarfile

import numpy as np
import pytest

from medjax.data.archives import digest, unpack
from medjax.errors import UserError
from tests.commands import files

CONTENTS = {
    f"in/{number % 3}/{number}.png": np.random.default_rng(number).bytes(200 + number)
    for number in range(150)
}


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def write_archive(path, contents=CONTENTS, more=()):
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member("in", tarfile.DIRTYPE))
        for name, content in contents.items():
            info = member(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in more:
            tar.addfile(info)
    return path


def test_everything_comes_out_as_it_was(tmp_path):
    archive = write_archive(tmp_path / "a.tgz")
    unpack(archive, tmp_path / "a")
    assert files(tmp_path / "a") == {
        tmp_path / "a" / name: content for name, content in CONTENTS.items()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.tgz"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([member("../evil.png")], "outside"),
        ([member("in/../../evil.png")], "outside"),
        ([member("/evil.png")], "absolute"),
        ([member("in/link", tarfile.SYMTYPE, "../..")], "link"),
        ([member("in/link", tarfile.SYMTYPE, "0")], "not a plain file"),
        ([member("in/link", tarfile.LNKTYPE, "in/0/0.png")], "not a plain file"),
        ([member("in/pipe", tarfile.FIFOTYPE)], "pipe"),
        ([member("in/0/0.png")], "twice"),
        ([member("./in/0/0.png")], "twice"),
        ([member("in/0/0.png/more")], "damaged"),
    ],
)
def test_what_does_not_belong_in_an_archive_refuses_it_whole(tmp_path, bad, reason):
    archive = write_archive(tmp_path / "a.tgz", more=bad)
    with pytest.raises(UserError, match=reason):
        unpack(archive, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]
    assert not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_torn_archive_is_named_and_leaves_nothing(tmp_path, part):
    content = write_archive(tmp_path / "a.tgz").read_bytes()
    (tmp_path / "a.tgz").write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match=r"a\.tgz: is damaged, or not a \.tgz"):
        unpack(tmp_path / "a.tgz", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_a_wrong_byte_anywhere_is_noticed(tmp_path, part):
    content = bytearray(write_archive(tmp_path / "a.tgz").read_bytes())
    content[int(part * len(content))] ^= 0xFF
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        unpack(tmp_path / "a.tgz", tmp_path / "a")


def test_a_page_of_an_error_is_no_archive(tmp_path):
    (tmp_path / "a.tgz").write_text("<html>Please log in</html>")
    with pytest.raises(UserError, match="remove it and download it again"):
        unpack(tmp_path / "a.tgz", tmp_path / "a")


def test_what_is_there_is_not_touched(tmp_path):
    archive = write_archive(tmp_path / "a.tgz")
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="already exists, so"):
        unpack(archive, tmp_path / "a")
    with pytest.raises(UserError, match="unpack it elsewhere"):
        unpack(archive, tmp_path / "none" / "a")


def test_what_a_killed_run_left_is_cleared(tmp_path):
    archive = write_archive(tmp_path / "a.tgz")
    (tmp_path / ".a.incomplete").mkdir()
    (tmp_path / ".a.incomplete" / "half.png").touch()
    unpack(archive, tmp_path / "a")
    assert len(files(tmp_path / "a")) == len(CONTENTS)


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert digest(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")
