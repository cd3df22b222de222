"""What the sources find in a folder, before anything is written."""

import csv
import json

import pytest

from medjax.data.datasets.folder import survey_folder
from medjax.data.datasets.nih_cxr import UNKNOWN_AGE, parse_age, survey_nih_cxr
from medjax.errors import UserError
from tests.images import write_image

HEADER = [
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
]


def write_table(folder, rows, name="Data_Entry_2017_v2020.csv", header=HEADER):
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_rows(folder, rows):
    lines = [json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")


@pytest.fixture
def nih(tmp_path):
    """Two images of patient 1 (one as JPEG, in another folder), one of patient 2."""
    write_image(tmp_path / "images_001/images/00000001_000.png")
    write_image(tmp_path / "images_002/images/00000001_001.jpg")
    write_image(tmp_path / "images_002/images/00000002_000.PNG")
    rows = [
        ["00000001_000.png", "Cardiomegaly|Effusion", 0, 1, 57, "M", "PA"],
        ["00000001_001.png", "No Finding", 1, 1, 411, "F", "AP"],
        ["00000002_000.png", "Hernia", 0, 2, "058Y", "F", "PA"],
    ]
    write_table(tmp_path, rows)
    return tmp_path


def test_nih_images_are_matched_by_stem_in_any_folder(nih):
    survey = survey_nih_cxr(nih)
    assert [entry.id for entry in survey.entries] == [
        "00000001_000",
        "00000001_001",
        "00000002_000",
    ]
    assert [entry.group for entry in survey.entries] == ["1", "1", "2"]
    assert survey.entries[0].labels == ("Cardiomegaly", "Effusion")
    assert survey.entries[1].labels == ()
    assert not survey.skipped


def test_nih_impossible_ages_are_unknown(nih):
    entries = survey_nih_cxr(nih).entries
    assert [entry.attributes["age"] for entry in entries] == [57, UNKNOWN_AGE, 58]
    assert "411" not in entries[1].text


def test_ages_of_both_editions():
    known = {"57": 57, "058Y": 58, "013M": 1, "005D": 0, "120": 120}
    assert {text: parse_age(text) for text in known} == known
    assert [parse_age(text) for text in ("121", "414Y", "", "old")] == [None] * 4


def test_nih_captions_have_two_styles(nih):
    named, binary = (survey_nih_cxr(nih, s) for s in ("findings", "binary"))
    assert "cardiomegaly" in named.entries[0].text.lower()
    assert "cardiomegaly" not in binary.entries[0].text.lower()


def test_nih_counts_what_has_no_partner(nih):
    write_image(nih / "images_001/images/00000009_000.png")
    write_image(nih / "images_003/00000001_000.jpg")
    table = nih / "Data_Entry_2017_v2020.csv"
    with table.open("a") as file:
        file.write("00000003_000.png,Mass,0,3,30,M,PA\n")
    survey = survey_nih_cxr(nih)
    assert survey.counts == {
        "images_found": 5,
        "other_files": 1,
        "rows_found": 4,
        "rows_without_image": 1,
        "images_without_row": 1,
    }
    reasons = {skip.name: skip.reason for skip in survey.skipped}
    assert "no usable row" in reasons["images_001/images/00000009_000.png"]
    assert "another file" in reasons["images_003/00000001_000.jpg"]


def test_nih_prefers_the_corrected_table(nih):
    rows = [["00000001_000.png", "Mass", 0, 1, 57, "M", "PA"]]
    write_table(nih, rows, "Data_Entry_2017.csv")
    assert survey_nih_cxr(nih).counts["rows_found"] == 3


def test_nih_missing_column_is_named(nih):
    header = [name if name != "Patient ID" else "Patient" for name in HEADER]
    write_table(nih, [["00000001_000.png", "Mass", 0, 1, 57, "M", "PA"]], header=header)
    with pytest.raises(UserError, match=r"'Patient ID', .*did you mean 'Patient'"):
        survey_nih_cxr(nih)


def test_nih_missing_table_or_match_is_said(nih):
    (nih / "Data_Entry_2017_v2020.csv").rename(nih / "labels.csv")
    with pytest.raises(UserError, match=r"it has: labels\.csv"):
        survey_nih_cxr(nih)
    write_table(nih, [["other.png", "Mass", 0, 1, 57, "M", "PA"]])
    with pytest.raises(UserError, match="none of 3 images"):
        survey_nih_cxr(nih)


def test_nih_captions_leave_out_what_nobody_knows(nih):
    write_table(nih, [["00000001_000.png", "Mass", 0, 1, "", "", "LL"]])
    (entry,) = survey_nih_cxr(nih).entries
    assert entry.attributes == {"view": "", "sex": "", "age": UNKNOWN_AGE}
    assert "mass" in entry.text


@pytest.mark.parametrize("survey", [survey_folder, survey_nih_cxr])
def test_no_folder_and_no_images_are_errors(survey, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        survey(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no image found"):
        survey(tmp_path)


def test_folder_without_metadata_takes_every_image(tmp_path):
    write_image(tmp_path / "a/1.png")
    write_image(tmp_path / "b/c/2.jpeg")
    write_image(tmp_path / ".hidden/3.png")
    survey = survey_folder(tmp_path)
    assert [(e.id, e.text) for e in survey.entries] == [
        ("a/1.png", ""),
        ("b/c/2.jpeg", ""),
    ]


def test_folder_reads_csv_and_jsonl_alike(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    (tmp_path / "metadata.csv").write_text(
        'file_name,text,patient\na.png,"one, two",7\nb.png,three,7\n'
    )
    first = survey_folder(tmp_path, "patient")
    (tmp_path / "metadata.csv").unlink()
    rows = [
        {"file_name": "a.png", "text": "one, two", "patient": 7},
        {"file_name": "b.png", "text": "three", "patient": 7},
    ]
    write_rows(tmp_path, rows)
    second = survey_folder(tmp_path, "patient")
    assert first.entries == second.entries
    assert [entry.group for entry in first.entries] == ["7", "7"]
    assert first.entries[0].text == "one, two"


def test_folder_names_what_it_leaves_out(tmp_path):
    for name in ("a.png", "spare.png", "c.png", "edges.png"):
        write_image(tmp_path / name)
    rows = [
        {"file_name": "a.png", "text": "", "conditioning_image": "edges.png"},
        {"file_name": "gone.png", "text": "", "conditioning_image": "edges.png"},
        {"file_name": "c.png", "text": ""},
    ]
    write_rows(tmp_path, rows)
    survey = survey_folder(tmp_path)
    assert [entry.id for entry in survey.entries] == ["a.png"]
    assert [skip.name for skip in survey.skipped] == [
        "metadata.jsonl, line 2: gone.png",
        "metadata.jsonl, line 3: c.png",
        "c.png",
        "spare.png",
    ]


def test_folder_takes_several_captions_of_one_image(tmp_path):
    write_image(tmp_path / "a.png")
    rows = [{"file_name": "a.png", "text": text} for text in ("one", "two")]
    write_rows(tmp_path, rows)
    entries = survey_folder(tmp_path).entries
    assert len({entry.id for entry in entries}) == 2
    assert len({entry.group for entry in entries}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,caption\na.png,x\n", "no column 'text'"),
        ("file_name,text\n", "has no rows"),
        ("file_name,text\ngone.png,x\n", r"gone\.png: its file does not exist"),
    ],
)
def test_folder_metadata_faults_are_said(tmp_path, content, message):
    write_image(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        survey_folder(tmp_path)


def test_folder_names_tables_that_it_does_not_read(tmp_path):
    write_image(tmp_path / "a.png")
    assert not any("not read" in note for note in survey_folder(tmp_path).notes)
    for name in ("captions.csv", "list.xlsx", ".hidden.csv", "README.md"):
        (tmp_path / name).write_text("file_name,text\na.png,x\n")
    survey = survey_folder(tmp_path)
    assert survey.captions == 0
    assert "not read: captions.csv, list.xlsx; captions are read" in survey.notes[0]
    (tmp_path / "captions.csv").rename(tmp_path / "metadata.csv")
    survey = survey_folder(tmp_path)
    assert survey.captions == 1
    assert survey.counts["other_files"] == 3
    assert not any("not read" in note for note in survey.notes)


def test_folder_group_column_must_exist(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="Expected one of these with this column"):
        survey_folder(tmp_path, "patient")
    write_rows(tmp_path, [{"file_name": "a.png", "text": "", "patients": 1}])
    with pytest.raises(UserError, match="did you mean 'patients'"):
        survey_folder(tmp_path, "patient")
