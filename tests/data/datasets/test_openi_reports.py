"""Open-i's XML as published: sections, images, and the view where it can be told."""

import pytest

from medjax.data.datasets.openi_reports import (
    image_key,
    parse_report,
    read_projections,
    read_reports,
    view_of,
)
from medjax.errors import UserError
from tests.openi import write_report


def test_sections_and_images_are_read(tmp_path):
    findings = " Clear.\n  Size < 2 cm &amp; stable. "
    report = parse_report(write_report(tmp_path, 7, findings=findings).read_bytes())
    assert report.id == "CXR7"
    assert report.section("FINDINGS") == "Clear. Size < 2 cm &amp; stable."
    assert report.section("INDICATION") == "Cough"
    assert report.section("COMPARISON") == ""
    assert report.images == ("CXR7_IM-0001-1001", "CXR7_IM-0001-2001")
    assert not report.is_empty


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not XML"),
        (b"<eCitation>", "is not XML"),
        (b"\xff\xfe\x00", "is not XML"),
        (b'<?xml version="1.0" encoding="nonsense"?><a/>', "is not XML"),
        (b"<html></html>", "not a report of Open-i"),
        (b"<eCitation><uId/></eCitation>", "not a report of Open-i"),
    ],
)
def test_what_is_no_report_is_said(content, reason):
    with pytest.raises(UserError, match=reason):
        parse_report(content)


def test_damaged_and_second_reports_are_named(tmp_path):
    for number in (10, 2, 1):
        write_report(tmp_path, number)
    write_report(tmp_path / "copy", 2)
    (tmp_path / "notes.xml").write_text("<html>")
    (tmp_path / "gone.xml").symlink_to("nowhere")
    read = read_reports(tmp_path)
    assert [report.id for report in read.reports] == ["CXR1", "CXR2", "CXR10"]
    assert [one.name for one in read.skipped] == ["ecgen-radiology/2.xml"]
    assert [one.name for one in read.damaged] == ["gone.xml", "notes.xml"]
    assert {one.what for one in (*read.skipped, *read.damaged)} == {"report"}
    assert read.count == 6


@pytest.mark.parametrize(
    ("caption", "view"),
    [
        ("AP portable chest", "AP"),
        ("PA chest XXXX, XXXX XXXX", "PA"),
        ("Chest, frontal view.", "frontal"),
        ("Xray Chest PA and Lateral", ""),
        ("PA lateral chest x-XXXX", ""),
        ("CHEST 2V FRONTAL/LATERAL", ""),
        ("2 VIEW CHEST: AP", ""),
        ("Two PA views", ""),
        ("Chest XXXX and lateral", ""),
        ("AP or PA", ""),
        ("paper, capped", ""),
        ("", ""),
    ],
)
def test_a_caption_tells_a_view_only_if_it_has_one(caption, view):
    assert view_of(caption) == view


def test_an_image_has_one_key_under_all_its_names():
    names = ("CXR1_1_IM-0001-3001", "1_IM-0001-3001.dcm", "CXR1_IM-0001-3001")
    assert {image_key(name) for name in names} == {("1", "IM-0001-3001")}
    assert image_key("CXR12_IM-0001-3001") != image_key("CXR1_2_IM-0001-3001")
    assert image_key("photo") == ("", "photo")


def test_a_table_of_projections_tells_views(tmp_path):
    assert read_projections(tmp_path) == ({}, [])
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "indiana_projections.csv").write_text(
        "uid,filename,projection\n"
        "1,1_IM-0001-4001.dcm.png,Frontal\n"
        "1,1_IM-0001-3001.dcm.png,Lateral\n"
        "1,photo.png,Lateral\n"
        "2,2_IM-0652-1001.dcm.png,Oblique\n"
    )
    views, damaged = read_projections(tmp_path)
    assert views == {("1", "IM-0001-4001"): "frontal", ("1", "IM-0001-3001"): "lateral"}
    assert len(damaged) == 2
    assert "line 4: photo.png" in damaged[0].name
