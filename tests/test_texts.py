"""Texts of a user are read correctly, whichever program saved them."""

import codecs
import itertools
import json

import pytest

from medjax import sample, texts
from medjax.data.datasets.folder import survey_folder
from medjax.data.datasets.openi_reports import parse_report
from medjax.errors import UserError
from medjax.pretrained.sources import read_json
from tests.images import write_image

ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
LINE_ENDS = ("\n", "\r\n", "\r")


def saved(text):
    """Yield a text's bytes in each encoding, with each line end."""
    for (encoding, mark), end in itertools.product(ENCODINGS.items(), LINE_ENDS):
        yield mark + text.replace("\n", end).encode(encoding)


def test_prompts_are_the_same_however_the_file_was_saved(tmp_path):
    file = tmp_path / "prompts.txt"
    want = ["épanchement pleural", "no\u2028finding"]
    for encoded in saved("\n".join([want[0], "", want[1], ""])):
        file.write_bytes(encoded)
        assert sample._prompts("", str(file)) == want


def test_a_table_is_the_same_however_it_was_saved(tmp_path):
    write_image(tmp_path / "a.png")
    table = 'file_name,text\na.png,"ombre\nà droite"\n'
    rows = json.dumps({"file_name": "a.png", "text": "ombre\nà droite"}) + "\n"
    for name, text in (("metadata.csv", table), ("metadata.jsonl", rows)):
        for encoded in saved(text):
            (tmp_path / name).write_bytes(encoded)
            survey = survey_folder(tmp_path)
            assert [entry.text for entry in survey.entries] == ["ombre\nà droite"]
            assert not survey.damaged
        (tmp_path / name).unlink()


def test_json_and_reports_are_the_same_however_they_were_saved(tmp_path):
    file = tmp_path / "config.json"
    report = (
        '<eCitation><uId id="CXR1"/><AbstractText Label="FINDINGS">cœur\nnormal'
        "</AbstractText></eCitation>"
    )
    for encoded in saved('{\n"name": "é"\n}'):
        file.write_bytes(encoded)
        assert read_json(file) == {"name": "é"}
    for encoded in saved(report):
        # The parser of XML does not support UTF-32.
        if b"\0\0" not in encoded:
            assert parse_report(encoded).section("FINDINGS") == "cœur normal"


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"one\r\ntwo\rcaf\xe9\n", "f.txt: line 3: byte 0xe9 is not UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\0b", "f.txt: line 1: byte 0x62 is not UTF-16-LE"),
        ("one\ntwo".encode("utf-16-le"), "f.txt: line 1: holds a NUL character"),
        (b"\x89PNG\r\n\x1a\n", "f.txt: line 1: byte 0x89 is not UTF-8"),
    ],
    ids=["latin-1", "cut", "no mark", "image"],
)
def test_what_is_no_text_is_named_by_line_and_byte(tmp_path, encoded, message):
    (tmp_path / "f.txt").write_bytes(encoded)
    with pytest.raises(UserError, match=message):
        texts.read_text(tmp_path / "f.txt")


def test_a_caption_that_is_no_text_costs_its_row(tmp_path):
    write_image(tmp_path / "a.png")
    rows = [
        {"file_name": "a.png", "text": "clear", "boxes": [1]},
        {"file_name": "a.png", "text": ["clear", "lungs"]},
        {"file_name": "a.png", "text": 3},
    ]
    content = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(content)
    survey = survey_folder(tmp_path)
    assert [entry.text for entry in survey.entries] == ["clear", "3"]
    (damaged,) = survey.damaged
    assert "has a list for 'text', expected a text" in damaged.reason
