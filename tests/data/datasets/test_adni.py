"""Brain slices keep their published test split, unless a subject is on both sides."""

import pytest

from medjax.data.datasets.adni import survey_adni
from medjax.data.prepared import PreparedSource
from medjax.data.roots import find_dataset
from medjax.data.splits import SPLITS
from medjax.errors import UserError
from medjax.prepare import prepare, summary
from tests.images import write_image


def write_brains(folder, subjects, slices=2):
    """Write slices; `subjects` are the subjects by the folder that they are in."""
    for place, names in subjects.items():
        for name in names:
            for number in range(78, 78 + slices):
                write_image(folder / place / f"{name}_{number}.jpeg", seed=number)


def read(out):
    """Return each split's records."""
    folder = find_dataset(out)
    sources = {split: PreparedSource(folder, split) for split in SPLITS}
    return {k: [source[i] for i in range(len(source))] for k, source in sources.items()}


def subjects_of(records):
    return {record["parameters"]["subject_id"] for record in records}


SUBJECTS = {
    "train/AD": [str(218391 + n) for n in range(20)],
    "train/NC": [str(808819 + n) for n in range(20)],
    "test/AD": ["388206", "1003730"],
    "test/NC": ["1182968"],
}


def test_class_subject_and_slice_are_read(tmp_path):
    write_image(tmp_path / "AD_NC/train/AD/218391_78.jpeg")
    write_image(tmp_path / "AD_NC/test/NC-parent/NC/Subj_14_66.PNG")
    second, first = survey_adni(tmp_path).entries
    assert (first.labels, first.group, first.attributes) == (
        ("AD",),
        "218391",
        {"slice": 78},
    )
    assert (second.labels, second.group) == (("NC",), "Subj_14")
    assert first.text == "axial T1 MRI of a brain, Alzheimer's disease"
    assert second.text == "axial T1 MRI of a brain, cognitively normal"


def test_the_published_test_split_stays_and_train_is_divided(tmp_path):
    write_brains(tmp_path / "AD_NC", SUBJECTS)
    report = prepare("adni", tmp_path / "AD_NC", tmp_path / "out")
    records = read(tmp_path / "out")
    held = {split: subjects_of(found) for split, found in records.items()}
    assert held["test"] == {"388206", "1003730", "1182968"}
    assert held["train"] | held["validation"] == {
        *SUBJECTS["train/AD"],
        *SUBJECTS["train/NC"],
    }
    assert not held["train"] & held["validation"]
    assert not report["notes"]
    labels = {"AD": 4, "NC": 2}
    expected = {"examples": 6, "groups": 3, "captions": 6, "labels": labels}
    assert report["splits"]["test"] == expected
    assert {record["labels"] for record in records["test"]} == {("AD",), ("NC",)}


def test_a_subject_on_both_sides_is_moved_whole_to_training_and_named(tmp_path):
    # One has both folders within a class, the other also changed the class.
    both = {"train/AD": ["388206", "1182968"]}
    folder = tmp_path / "AD_NC"
    write_brains(folder, SUBJECTS)
    write_brains(folder, both)
    report = prepare("adni", folder, tmp_path / "out")
    held = {
        split: subjects_of(found) for split, found in read(tmp_path / "out").items()
    }
    assert held["test"] == {"1003730"}
    assert {"388206", "1182968"} <= held["train"] | held["validation"]
    assert sum(map(len, held.values())) == len(set().union(*held.values())) == 43
    said = summary(report, tmp_path / "out")
    assert "2 of 43 subjects are in both train and test" in said
    assert "moved to the training side: 1182968, 388206" in said


def test_shares_are_those_of_train_and_validation(tmp_path):
    write_brains(tmp_path / "AD_NC", SUBJECTS, slices=1)
    fractions = {"train": 0.0, "validation": 0.5, "test": 0.5}
    report = prepare("adni", tmp_path / "AD_NC", tmp_path / "out", fractions=fractions)
    sizes = {name: split["groups"] for name, split in report["splits"].items()}
    assert sizes == {"validation": 40, "test": 3}
    fractions = {"train": 0.0, "validation": 0.0, "test": 1.0}
    with pytest.raises(UserError, match="no share for train or validation"):
        prepare("adni", tmp_path / "AD_NC", tmp_path / "other", fractions=fractions)


def test_what_does_not_lie_in_the_layout_is_left_out_by_name(tmp_path):
    good = "AD_NC/train/AD/218391_78.jpeg"
    bad = {
        "AD_NC/train/MCI/1_78.jpeg": "folder is not named AD or NC",
        "AD_NC/AD/2_78.jpeg": "is not in exactly one folder train or test",
        "AD_NC/train/AD/3.jpeg": "does not give subject and slice",
        "cover.png": "folder is not named AD or NC",
    }
    for name in (good, *bad):
        write_image(tmp_path / name)
    survey = survey_adni(tmp_path)
    assert [entry.id for entry in survey.entries] == [good]
    reasons = {skip.name: skip.reason for skip in survey.skipped}
    assert reasons.keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in reasons[name]
    with pytest.raises(UserError, match=r"none of 2 images has a path like \{train"):
        survey_adni(tmp_path / "AD_NC" / "train" / "AD")


def test_real_slices_are_split_by_subject(shared_data, tmp_path):
    report = prepare("adni", shared_data / "brain", tmp_path / "out")
    records = read(tmp_path / "out")
    assert sum(map(len, records.values())) == 288
    held = [subjects_of(found) for found in records.values()]
    assert sum(map(len, held)) == len(set().union(*held)) == 18
    published = {
        path.stem.rpartition("_")[0] for path in shared_data.glob("brain/*/test/*/*")
    }
    assert subjects_of(records["test"]) == published
    for split, found in records.items():
        for record in found:
            assert record["id"].split("/")[2:-1] == list(record["labels"])
        counts = report["splits"][split]["labels"]
        assert sum(counts.values()) == len(found)
    assert not report["skipped"]
