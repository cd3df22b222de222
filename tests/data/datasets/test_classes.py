"""Classes from folders: the folders beside one another, wherever the source begins."""

import pytest

from medjax.data.datasets.folder import survey_folder
from medjax.data.prepared import PreparedSource
from medjax.data.roots import find_dataset
from medjax.errors import UserError
from medjax.prepare import prepare
from tests.images import write_image


def labels(survey):
    return {entry.id: entry.labels for entry in survey.entries}


@pytest.mark.parametrize(
    ("layout", "source"),
    [("{}/1.png", "."), ("Images/{}/1.png", "."), ("Images/{}/1.png", "Images"),
     ("{}/anna/1.png", "."), ("a/b/{}/c/d/1.png", "a")],
)  # fmt: skip
def test_the_class_is_the_folder_beside_the_others(tmp_path, layout, source):
    names = ("n02085620-Chihuahua", "a pug", "é")
    for name in names:
        write_image(tmp_path / layout.format(name))
    survey = survey_folder(tmp_path / source, classes_from_folders=True)
    assert survey.label_names == tuple(sorted(names))
    for entry in survey.entries:
        assert f"/{entry.labels[0]}/" in f"/{entry.id}"
    plain = survey_folder(tmp_path / source)
    assert [entry.group for entry in plain.entries] == [e.group for e in survey.entries]
    assert not plain.label_names
    assert {entry.labels for entry in plain.entries} == {()}


def test_an_image_beside_the_classes_is_left_out_by_name(tmp_path):
    for name in ("pug/1.png", "beagle/1.png", "cover.png"):
        write_image(tmp_path / name)
    survey = survey_folder(tmp_path, classes_from_folders=True)
    assert labels(survey) == {"beagle/1.png": ("beagle",), "pug/1.png": ("pug",)}
    assert [(x.name, x.reason) for x in survey.skipped] == [
        ("cover.png", "is not in the folder of a class")
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1.png", "2.png"), "fewer than two classes: no folder"),
        (("Images/pug/1.png", "cover.png"), r"fewer than two classes: Images \(first"),
        (("x/train/pug/1.png", "x/Test/pug/2.png"), "Test, train, which are splits"),
    ],
)
def test_what_holds_no_classes_is_an_error(tmp_path, names, message):
    for name in names:
        write_image(tmp_path / name)
    with pytest.raises(UserError, match=message):
        survey_folder(tmp_path, classes_from_folders=True)


def test_captions_and_groups_stay_beside_labels(tmp_path):
    for name in ("pug/1.png", "beagle/1.png"):
        write_image(tmp_path / name)
    (tmp_path / "metadata.csv").write_text(
        "file_name,text,owner\npug/1.png,a pug,7\nbeagle/1.png,a beagle,7\n"
    )
    pug, beagle = survey_folder(tmp_path, "owner", classes_from_folders=True).entries
    assert (pug.text, pug.group, pug.labels) == ("a pug", "7", ("pug",))
    assert (beagle.text, beagle.group, beagle.labels) == ("a beagle", "7", ("beagle",))


@pytest.mark.ci
def test_real_dogs_are_labelled_by_breed(shared_data, tmp_path):
    source = shared_data / "dogs"
    report = prepare("folder", source, tmp_path / "out", classes_from_folders=True)
    breeds = sorted(path.name for path in (source / "Images").iterdir())
    folder = find_dataset(tmp_path / "out")
    seen = []
    for split, numbers in report["splits"].items():
        assert list(numbers["labels"]) == breeds
        records = PreparedSource(folder, split)
        for record in (records[i] for i in range(len(records))):
            assert record["labels"] == (record["id"].split("/")[1],)
            seen.append(record["id"])
        assert sum(numbers["labels"].values()) == len(records)
    assert len(set(seen)) == len(seen) == 200
