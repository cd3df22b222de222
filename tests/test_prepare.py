"""`medjax.prepare`, from raw files to a data set that training reads."""

import json
import logging
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from medjax.data.config import DataConfig
from medjax.data.pipeline import dataset_metadata, open_dataset
from medjax.data.readers import read_image
from medjax.data.roots import find_prepared
from medjax.data.splits import SPLITS, split_of
from medjax.errors import UserError
from medjax.prepare import prepare, summary
from medjax.runs.config import make_config, parse
from medjax.tasks.controlnet import ControlNetConfig, make_controlnet_task
from medjax.tasks.interface import TaskInputs
from medjax.training.two_stages import train_stages
from tests import in_process
from tests.images import write_image

PATIENTS = 24


def write_folder(folder, patients=PATIENTS, images=2):
    """Write images of several patients; return the rows."""
    rows = []
    for patient in range(patients):
        for number in range(images):
            name = f"images/{patient}_{number}.png"
            write_image(folder / name, seed=patient)
            rows.append(
                {"file_name": name, "text": f"p {patient}", "patient": str(patient)}
            )
    write_metadata(folder, rows)
    return rows


def write_metadata(folder, rows):
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def read_all(root):
    """Return every record of every split."""
    config = DataConfig(root=str(root))
    sources = {
        name: open_dataset(config, name) for name in dataset_metadata(config).splits
    }
    return {
        name: [source[i] for i in range(len(source))]
        for name, source in sources.items()
    }


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    write_folder(folder)
    return folder


def test_records_come_back_as_they_were(source, tmp_path):
    out = tmp_path / "out"
    prepare("folder", source, out, group_column="patient")
    records = [record for split in read_all(out).values() for record in split]
    assert len(records) == 2 * PATIENTS
    assert len({record["id"] for record in records}) == 2 * PATIENTS
    for record in records[:5]:
        np.testing.assert_array_equal(
            record["image"], read_image(source / record["id"])
        )
        assert record["text"] == f"p {record['parameters']['group']}"
        assert record["labels"] == ()


def test_no_patient_is_on_two_sides(source, tmp_path):
    prepare("folder", source, tmp_path / "out", group_column="patient")
    splits = read_all(tmp_path / "out")
    groups = {
        name: {record["parameters"]["group"] for record in records}
        for name, records in splits.items()
    }
    assert set(groups) == set(SPLITS)
    assert sum(map(len, groups.values())) == len(set().union(*groups.values()))
    for name, members in groups.items():
        assert {split_of(group) for group in members} == {name}


def test_nobody_moves_when_patients_are_added(source, tmp_path):
    prepare("folder", source, tmp_path / "before", group_column="patient")
    rows = write_folder(source, patients=PATIENTS + 9)
    write_metadata(source, rows[::-1])
    prepare("folder", source, tmp_path / "after", group_column="patient")
    before, after = read_all(tmp_path / "before"), read_all(tmp_path / "after")
    for name, records in before.items():
        later = {record["id"] for record in after[name]}
        assert {record["id"] for record in records} <= later


def test_the_report_says_what_happened(source, tmp_path):
    (source / "images" / "3_1.png").write_bytes(b"no image")
    (source / "images" / "4_0.png").unlink()
    report = prepare("folder", source, tmp_path / "out", group_column="patient")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    (damaged,), (skipped,) = report["quarantine"], report["skipped"]
    assert (damaged["what"], damaged["name"]) == ("image", "images/3_1.png")
    assert (skipped["what"], skipped["name"]) == (
        "row",
        "metadata.jsonl, line 9: images/4_0.png",
    )
    examples = sum(split["examples"] for split in report["splits"].values())
    assert examples == 2 * PATIENTS - 2
    said = summary(report, tmp_path / "out")
    assert "image images/3_1.png: not a readable image" in said
    assert "quarantine: 1 damaged and left out" in said
    assert "images found: 47" in said
    few = report["splits"]["validation"]["examples"]
    assert f"only {few} images in validation" in said


def test_a_split_that_is_all_unreadable_is_absent(source, tmp_path):
    for image in (source / "images").iterdir():
        if split_of(image.name.partition("_")[0]) == "validation":
            image.write_bytes(b"no image")
    report = prepare("folder", source, tmp_path / "out", group_column="patient")
    assert set(report["splits"]) == set(read_all(tmp_path / "out")) == {"train", "test"}
    assert "no groups in validation" in summary(report, tmp_path)


def test_all_unreadable_is_an_error(source, tmp_path):
    for image in (source / "images").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of 48 images .*\.png: not a readable"):
        prepare("folder", source, tmp_path / "out", group_column="patient")
    assert find_prepared(tmp_path / "out") == []


@pytest.mark.parametrize(("captioned", "stored"), [(0, False), (1, True), (48, True)])
def test_captions_are_counted_and_stored_where_there_are_any(
    source, tmp_path, captioned, stored
):
    rows = [json.loads(x) for x in (source / "metadata.jsonl").read_text().split("\n")]
    for number, row in enumerate(rows):
        row["text"] = "a chest" if number < captioned else " "
    write_metadata(source, rows)
    report = prepare("folder", source, tmp_path / "out")
    said = summary(report, tmp_path / "out")
    assert f"captions: {captioned} of 48 images have one" in said
    data = DataConfig(root=str(tmp_path / "out"))
    assert ("text" in dataset_metadata(data).features) == stored
    texts = [x["text"] for split in read_all(tmp_path / "out").values() for x in split]
    assert texts.count("a chest") == captioned


def test_without_captions_text_to_image_refuses_and_controlnet_says_so(
    source, tmp_path, caplog
):
    (source / "metadata.jsonl").unlink()
    prepare("folder", source, tmp_path / "out")
    data = DataConfig(root=str(tmp_path / "out"))
    config = make_config("text_to_image")
    config.data.root, config.data.batch_size = data.root, 8
    config.model.pretrained = ""
    with pytest.raises(UserError, match="out: no image has a caption, .*csv"):
        train_stages(parse(config), tmp_path / "run")
    config.model.autoencoder = ""
    config.model.train_text_encoder = True
    config.model.autoencoder_config = "configs/phantom_vae.py"
    with pytest.raises(UserError, match="no image has a caption"):
        train_stages(parse(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    given = TaskInputs(ControlNetConfig(pretrained=""), data, None, jax.random.key(0))
    with (
        caplog.at_level(logging.WARNING, "medjax"),
        pytest.raises(AttributeError),  # The diffusion is None, to stop here.
    ):
        make_controlnet_task(given)
    assert "has no captions: the ControlNet is trained with" in caplog.text


def test_stored_conditions_are_checked_and_kept(tmp_path):
    folder = tmp_path / "source"
    write_image(folder / "a.png", 12, 10)
    write_image(folder / "b.png", 12, 10)
    write_image(folder / "good.png", 24, 20, seed=1)
    write_image(folder / "bad.png", 20, 20)
    rows = [
        {"file_name": "a.png", "text": "", "conditioning_image": "good.png"},
        {"file_name": "b.png", "text": "", "conditioning_image": "bad.png"},
    ]
    write_metadata(folder, rows)
    everything_trains = {"train": 1.0, "validation": 0.0, "test": 0.0}
    report = prepare("folder", folder, tmp_path / "out", fractions=everything_trains)
    assert "Expected the same aspect" in report["quarantine"][0]["reason"]
    assert "no groups in validation and test" in summary(report, tmp_path)
    (record,) = read_all(tmp_path / "out")["train"]
    stored = read_image(folder / "good.png")
    np.testing.assert_array_equal(record["conditioning_image"], stored)


def test_complete_data_are_replaced_only_on_request(source, tmp_path):
    out = tmp_path / "out"
    first = prepare("folder", source, out, group_column="patient")
    with pytest.raises(UserError, match=r"already has folder/1\.0\.0.*--overwrite"):
        prepare("folder", source, out, group_column="patient")
    (source / "images" / "3_1.png").unlink()
    second = prepare("folder", source, out, group_column="patient", overwrite=True)
    assert first["splits"] != second["splits"]
    splits = dataset_metadata(DataConfig(root=str(out))).splits
    assert sum(splits.values()) == 2 * PATIENTS - 1


def test_another_data_set_is_never_replaced(source, tmp_path):
    out = tmp_path / "out"
    prepare("folder", source, out, group_column="patient")
    for place in (out / "folder", out / "folder" / "1.0.0", tmp_path):
        with pytest.raises(UserError, match="has another data set"):
            prepare("folder", source, place, group_column="patient", overwrite=True)
    assert len(find_prepared(out)) == 1


def test_an_interrupted_run_leaves_the_old_data_and_nothing_else(
    source, tmp_path, monkeypatch
):
    from medjax.data.datasets import builder

    out = tmp_path / "out"
    prepare("folder", source, out, group_column="patient")
    before = sorted(path for path in out.rglob("*") if path.is_file())
    decode = builder.decode_image

    def stop(encoded, name):
        if name.endswith("9_1.png"):
            raise KeyboardInterrupt
        return decode(encoded, name)

    monkeypatch.setattr(builder, "decode_image", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", source, out, group_column="patient", overwrite=True)
    assert sorted(path for path in out.rglob("*") if path.is_file()) == before


def test_what_a_killed_run_leaves_is_no_data_set(source, tmp_path):
    out = tmp_path / "out"
    prepare("folder", source, out, group_column="patient")
    (out / "folder").rename(out / ".incomplete")
    with pytest.raises(UserError, match="an interrupted medjax prepare"):
        open_dataset(DataConfig(root=str(out)), "train")
    prepare("folder", source, out, group_column="patient")
    assert not (out / ".incomplete").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "fodler"}, "did you mean 'folder'"),
        (
            {"dataset": "folder", "caption_style": "binary"},
            "applies only to --dataset=nih_cxr",
        ),
        ({"dataset": "nih_cxr", "caption_style": "binery"}, "did you mean 'binary'"),
        (
            {"dataset": "nih_cxr", "group_column": "x"},
            "applies only to --dataset=folder",
        ),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare(source=tmp_path, out=tmp_path / "out", **options)


def run(*arguments, trace=False):
    return subprocess.run(
        [sys.executable, "-m", "medjax.prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        # Python lists every imported module on stderr.
        env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1" if trace else ""},
        check=False,
    )


def test_the_command_says_mistakes_in_one_line(tmp_path):
    typed = ("--dataset=folder", f"--source={tmp_path}/none", f"--out={tmp_path}/out")
    done = in_process.medjax("prepare", *typed)
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.ci
def test_real_radiographs_without_tensorflow(shared_data, tmp_path):
    source, out = shared_data / "nih_cxr", tmp_path / "out"
    done = run("--dataset=nih_cxr", f"--source={source}", f"--out={out}", trace=True)
    assert done.returncode == 0, done.stderr
    assert "images without row: 0" in done.stdout
    metadata = dataset_metadata(DataConfig(root=str(out)))
    assert sum(metadata.splits.values()) == 814
    assert "Pneumonia" in metadata.label_names
    assert "attribution" in metadata.licence
    patients = [
        {record["parameters"]["patient_id"] for record in records}
        for records in read_all(out).values()
    ]
    assert len(set().union(*patients)) == sum(map(len, patients)) == 552
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "tensorflow_datasets" in imported
    assert not {"tensorflow", "torch"} & imported
