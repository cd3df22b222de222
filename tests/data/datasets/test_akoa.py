"""Knee slices are kept together by the subject in their names, whatever its form."""

import pytest

from medjax.data.datasets.akoa import UNKNOWN_SLICE, survey_akoa
from medjax.data.prepared import PreparedSource
from medjax.data.roots import find_dataset
from medjax.data.splits import SPLITS
from medjax.errors import UserError
from medjax.prepare import prepare, summary
from tests.images import write_image

NAME = "OAI{}_BaseLine_3_de3d1_SAG_3D_DESS_WE_{}.nii.gz_{}.png"


@pytest.mark.parametrize(
    ("name", "subject", "side", "number"),
    [
        (NAME.format(9062645, "LEFT", 0), "9062645", "left", 0),
        (NAME.format(9036287, "Left", 39), "9036287", "left", 39),
        (NAME.format(9014797, "R_I_G_H_T", 7), "9014797", "right", 7),
        ("oai9014797_BaseLine_3_de3d1ps_right.nii.gz_12.PNG", "9014797", "right", 12),
        (
            "9002116_20050715_SAG_3D_DESS_RIGHT_10423916_image.png",
            "9002116",
            "right",
            -1,
        ),
        ("OAI9014797_LEFT_and_RIGHT_3.png", "9014797", "", 3),
        ("OAI9014797_BRIGHTness_cleft.png", "9014797", "", -1),
    ],
)
def test_a_name_tells_subject_side_and_slice(tmp_path, name, subject, side, number):
    write_image(tmp_path / "AKOA_Analysis" / name)
    (entry,) = survey_akoa(tmp_path).entries
    assert entry.group == subject
    assert entry.attributes == {"side": side, "slice": number}
    assert entry.text == f"sagittal MRI of a {side} knee".replace("  ", " ")
    assert UNKNOWN_SLICE == -1


def test_a_file_of_nobody_is_left_out_by_name(tmp_path):
    # The last could be anyone's, so it goes nowhere; 8 digits are no subject's number.
    write_image(tmp_path / NAME.format(9062645, "LEFT", 0))
    for name in ("x_OAI9062645_1.png", "OAI90626451_2.png", "fs_001.png"):
        write_image(tmp_path / name)
    survey = survey_akoa(tmp_path)
    assert [entry.group for entry in survey.entries] == ["9062645"]
    assert sorted(skip.name for skip in survey.skipped) == [
        "OAI90626451_2.png",
        "fs_001.png",
        "x_OAI9062645_1.png",
    ]
    assert all("the subject" in skip.reason for skip in survey.skipped)
    assert not survey.notes


def test_names_that_tell_nothing_are_an_error(tmp_path):
    write_image(tmp_path / "001.png")
    with pytest.raises(UserError, match=r"none of 1 names .*; got 001\.png, expected"):
        survey_akoa(tmp_path)


def test_no_subject_is_on_two_sides(tmp_path):
    subjects = [9000000 + 37 * number for number in range(40)]
    for subject in subjects:
        for side in ("LEFT", "RIGHT"):
            name = NAME.format(subject, side, 5)
            write_image(tmp_path / "AKOA_Analysis" / name, seed=subject)
    report = prepare("oai_akoa", tmp_path / "AKOA_Analysis", tmp_path / "out")
    folder = find_dataset(tmp_path / "out")
    held = []
    for split in SPLITS:
        source = PreparedSource(folder, split)
        parameters = [source[i]["parameters"] for i in range(len(source))]
        assert {one["side"] for one in parameters} == {"left", "right"}
        assert {one["slice"] for one in parameters} == {5}
        held.append({one["subject_id"] for one in parameters})
        assert (
            len(parameters) == 2 * len(held[-1]) == report["splits"][split]["examples"]
        )
    assert sum(map(len, held)) == len(set().union(*held)) == len(subjects)


def test_real_slices_of_one_subject_are_never_divided(shared_data, tmp_path):
    report = prepare("oai_akoa", shared_data / "knee", tmp_path / "out")
    expected = {"examples": 234, "groups": 1, "captions": 234, "labels": {}}
    assert report["splits"] == {"train": expected}
    assert not report["skipped"]
    assert not report["quarantine"]
    said = summary(report, tmp_path / "out")
    assert "no file name gives a subject, so all count as one" in said
    record = PreparedSource(find_dataset(tmp_path / "out"), "train")[0]
    assert record["text"] == "MRI of a knee"
    assert record["parameters"]["slice"] >= 1
