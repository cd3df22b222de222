"""Archives are fetched and unpacked where they are missing, and only there."""

import pytest

from medjax.data.datasets import openi_source
from medjax.data.datasets.openi_source import complete_source
from medjax.errors import UserError
from medjax.prepare import prepare
from medjax.pretrained.tiny import tiny_tokenizer
from medjax.pretrained.tokenizer import save_tokenizer
from tests.commands import files
from tests.openi import packed, write_pairs
from tests.server import Files, serve


@pytest.fixture
def archives(tmp_path_factory):
    """The two archives, by name."""
    folder = tmp_path_factory.mktemp("archives")
    write_pairs(folder, range(1, 13))
    (folder / "reports").mkdir()
    (folder / "ecgen-radiology").rename(folder / "reports" / "ecgen-radiology")
    return {
        "NLMCXR_reports.tgz": packed(folder / "reports"),
        "NLMCXR_png.tgz": packed(folder / "png"),
    }


@pytest.fixture
def server(archives, monkeypatch):
    with serve(Files(archives)) as served:
        monkeypatch.setattr(openi_source, "ADDRESS", served.address)
        yield served


def test_archives_are_unpacked_once(archives, tmp_path):
    for name, content in archives.items():
        (tmp_path / "below").mkdir(exist_ok=True)
        (tmp_path / "below" / name).write_bytes(content)
    notes = complete_source(tmp_path)
    assert [note.split(":")[0] for note in notes] == list(archives)
    there = files(tmp_path)
    assert len(there) == 2 + 12 + 24
    assert complete_source(tmp_path) == notes
    assert files(tmp_path) == there
    assert {path.parts[-2] for path in there} == {
        "below",
        "ecgen-radiology",
        "NLMCXR_png",
    }


def test_files_that_are_there_are_taken_as_they_are(tmp_path, server):
    write_pairs(tmp_path, [1])
    before = files(tmp_path)
    assert complete_source(tmp_path) == complete_source(tmp_path, download=True) == ()
    assert files(tmp_path) == before
    assert not server.requests


def test_what_is_missing_is_said(tmp_path, archives):
    with pytest.raises(UserError, match="no such folder"):
        complete_source(tmp_path / "none")
    with pytest.raises(
        UserError, match=r"neither reports .* nor NLMCXR_reports\.tgz; "
    ):
        complete_source(tmp_path)
    (tmp_path / "NLMCXR_reports.tgz").write_bytes(archives["NLMCXR_reports.tgz"])
    message = r"images .* NLMCXR_png\.tgz; --download fetches it from https://openi\."
    with pytest.raises(UserError, match=message):
        complete_source(tmp_path)


def test_a_download_goes_on_and_ends_in_a_data_set(tmp_path, server, archives):
    source, out, words = (
        tmp_path / "new" / "openi",
        tmp_path / "out",
        tmp_path / "words",
    )
    save_tokenizer(tiny_tokenizer(), words)
    options = {"tokenizer": str(words), "download": True}
    server.statuses = [404]
    with pytest.raises(UserError, match="the server refuses: 404"):
        prepare("openi", source, out, **options)
    server.cut_after = 2_000
    report = prepare("openi", source, out, **options)
    assert server.sent == sum(map(len, archives.values()))
    examples = sum(split["examples"] for split in report["splits"].values())
    assert examples == 24
    assert sum("sha256" in note for note in report["notes"]) == 2
    asked = len(server.requests)
    assert prepare("openi", source, out, overwrite=True, **options) == report
    assert len(server.requests) == asked


def test_a_damaged_archive_is_named(tmp_path, server, archives):
    content = archives["NLMCXR_png.tgz"]
    server.contents["NLMCXR_png.tgz"] = content[: len(content) // 2]
    with pytest.raises(
        UserError, match=r"NLMCXR_png\.tgz: is damaged.*download it again"
    ):
        complete_source(tmp_path, download=True)
    assert not (tmp_path / "NLMCXR_png").exists()
