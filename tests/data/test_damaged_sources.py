"""What is damaged in a source costs itself alone, and is named."""

import json
import os
import unicodedata

import pytest

from medjax.data.datasets.folder import survey_folder
from medjax.data.datasets.nih_cxr import survey_nih_cxr
from medjax.errors import UserError
from tests.data.test_datasets import write_rows, write_table
from tests.images import write_image


def test_a_damaged_row_of_nih_is_named(tmp_path):
    write_image(tmp_path / "1.png")
    bad = [
        ["1.png", "Flu", 0, 1, 57, "M", "PA"],
        ["1.png", "Mass|No Finding", 0, 1, 57, "M", "PA"],
        ["1.png", "Mass", 0, "", 57, "M", "PA"],
        ["", "Mass", 0, 1, 57, "M", "PA"],
    ]
    write_table(tmp_path, bad)
    with pytest.raises(UserError, match=r"none of 1 images.*unknown finding 'Flu'"):
        survey_nih_cxr(tmp_path)
    good = ["1.png", "Mass", 0, "²", "9" * 5000, "M", "PA"]
    write_table(tmp_path, [*bad, good, good])
    survey = survey_nih_cxr(tmp_path)
    assert [entry.group for entry in survey.entries] == ["²"]
    reasons = [one.reason for one in survey.damaged]
    assert "unknown finding 'Flu'" in reasons[0]
    assert "together with a finding" in reasons[1]
    assert reasons[2:] == ["no value for 'Patient ID'", "no value for 'Image Index'"]
    assert [one.reason for one in survey.skipped] == ["another row for this image"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("3", "has type int, expected an object"),
        ('{"file_name": "a.png"}', "has no value for 'text'"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "is not UTF-8"),
        ('{"file_name": "a.png", "text": "\\u0000"}', "holds a NUL character"),
    ],
)
def test_a_damaged_json_line_is_named(tmp_path, row, reason):
    write_image(tmp_path / "a.png")
    # U+2028 separates lines to Unicode, but not to JSON.
    good = '{"file_name": "a.png", "text": "one\u2028line"}'
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{row}\n\n{good}\n")
    survey = survey_folder(tmp_path)
    assert [entry.text for entry in survey.entries] == ["one\u2028line"] * 2
    (damaged,) = survey.damaged
    assert damaged.name == "metadata.jsonl, line 2"
    assert reason in damaged.reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'a.png,"never closed', "is not CSV"),
        (b'a.png,"closed" too early', "is not CSV"),
        (b"a.png,one, two", "has 3 cells, but the header has 2"),
        (b"a.png", "has no value for 'text'"),
        (b"a.png,caf\xe9", "is not UTF-8"),
        (b"a.png,a\0b", "holds a NUL character"),
        (b"a.png," + b"x" * 200_000, "field larger than field limit"),
    ],
    ids=["open", "early", "surplus", "short", "latin", "nul", "long"],
)
def test_a_damaged_csv_line_is_named(tmp_path, row, reason):
    write_image(tmp_path / "a.png")
    good = b'a.png,"two\r\nlines"\r\n'
    content = b"\xef\xbb\xbffile_name,text\r\n" + good + row + b"\r\n\r\n" + good
    (tmp_path / "metadata.csv").write_bytes(content)
    survey = survey_folder(tmp_path)
    assert [entry.text for entry in survey.entries] == ["two\nlines"] * 2
    (damaged,) = survey.damaged
    assert damaged.name == "metadata.csv, line 4"
    assert reason in damaged.reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,text\na.png,x\n".encode("utf-16")[:-1], "is not UTF-16-LE"),
        (b"", "has no column 'file_name', only none"),
        (b"file_name,text,text\na.png,x,y\n", "has the column 'text' twice"),
        (b"file_name,text\na.png\n", r"none of its 1 rows .* line 2: has no value"),
        (b'"file_name,text\na.png,x\n', "its first line is not CSV"),
    ],
    ids=["utf16", "empty", "twice", "rows", "header"],
)
def test_a_table_that_is_no_use_is_an_error(tmp_path, content, message):
    write_image(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        survey_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a.png", "outside the folder"),
        ("/etc/a.png", "outside the folder"),
        ("in/../../a.png", "outside the folder"),
        ("notes.txt", "not named as an image"),
        ("", "names no file"),
        ("x" * 5000 + ".png", "does not exist"),
        (".hidden.png", "does not exist"),
    ],
)
def test_only_what_lies_in_the_folder_is_taken(tmp_path, name, reason):
    write_image(tmp_path / "a.png")
    folder = tmp_path / "folder"
    write_image(folder / "in/b.png")
    write_image(folder / ".hidden.png")
    (folder / "notes.txt").touch()
    rows = [
        {"file_name": "in/../in/b.png", "text": "", "conditioning_image": None},
        {"file_name": name, "text": ""},
    ]
    write_rows(folder, rows)
    survey = survey_folder(folder)
    assert [entry.id for entry in survey.entries] == ["in/b.png"]
    (skipped,) = survey.skipped
    assert reason in skipped.reason


def test_a_row_without_its_group_is_not_split_at_random(tmp_path):
    write_image(tmp_path / "a.png")
    rows = [{"file_name": "a.png", "text": "", "patient": one} for one in ("7", None)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    survey = survey_folder(tmp_path, "patient")
    assert [entry.group for entry in survey.entries] == ["7"]
    assert "no value for 'patient'" in survey.skipped[0].reason


def test_names_are_found_in_either_form_of_unicode(tmp_path):
    one, two = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    assert one != two
    for name in (f"{one}1.png", f"{two}1.png", f"{two}2.png"):
        write_image(tmp_path / name)
    named = (f"{one}1.png", f"{two}1.png", f"{one}2.png")
    write_rows(tmp_path, [{"file_name": name, "text": ""} for name in named])
    survey = survey_folder(tmp_path)
    assert len({entry.image for entry in survey.entries}) == 3
    assert not survey.skipped


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_image(tmp_path / "elsewhere/a.png")
    folder = tmp_path / "folder"
    write_image(folder / "in/b.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "in" / "circle").symlink_to(folder)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "called.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    survey = survey_folder(folder)
    assert [entry.id for entry in survey.entries] == ["in/b.png", "link/a.png"]
    damaged = {one.name: one.reason for one in survey.damaged}
    assert sorted(damaged) == [
        "called.png",
        "dangling.png",
        "in/circle",
        "loop.png",
        "pipe.png",
    ]
    assert "link to 'nowhere.png'" in damaged["dangling.png"]


def test_names_that_are_no_text_are_escaped(tmp_path):
    write_image(tmp_path / os.fsdecode(b"caf\xe9\nx.png"))
    write_image(tmp_path / "caf\\xe9\\nx.png")
    ids = [entry.id for entry in survey_folder(tmp_path).entries]
    assert ids == ["caf\\xe9\\nx.png", "caf\\xe9\\nx.png#2"]
