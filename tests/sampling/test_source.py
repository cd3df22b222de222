"""What is drawn from is prepared as its training was, wherever it was published."""

import itertools
import json
import shutil

import numpy as np
import pytest

from medjax.data.config import ControlDataConfig
from medjax.data.controls import Preparation, read_control
from medjax.data.examples import make_example
from medjax.data.pipeline import open_dataset
from medjax.data.readers import read_image
from medjax.errors import UserError
from medjax.export import export
from medjax.prepare import prepare
from medjax.pretrained import sources
from medjax.sampling.defaults import ABOUT
from medjax.sampling.source import load_source, published_about
from tests.images import write_image
from tests.saved_runs import save_run
from tests.tiny_demo import get_config

MODES = ("center_crop", "letterbox", "stretch")


def drawn_by(source, control):
    """Return the control that a source is given by default."""
    how = (None, source.size, source.preparation, True, 1.0)
    return read_control(None, control, *how).conditioning_image


@pytest.mark.parametrize("resize", MODES)
def test_a_stored_control_is_prepared_as_in_training(tmp_path, resize):
    sizes = ((40, 30), (30, 40), (9, 12), (16, 16), (24, 3))
    for size, scale in itertools.product(sizes, (1, 2)):
        image = read_image(write_image(tmp_path / "image.png", *size))
        file = tmp_path / "control.png"
        write_image(file, *(scale * side for side in size), seed=1)
        control = read_image(file)
        data = ControlDataConfig(image_size=16, resize=resize)
        record = {"id": "a", "image": image, "conditioning_image": control}
        example, _ = make_example(record, None, data, (0, 0))
        how = Preparation.of_training(data, stored=True)
        given = read_control(None, file, None, (16, 16), how, True, 1.0)
        assert given.size == (16, 16)
        np.testing.assert_array_equal(
            given.conditioning_image, example["conditioning_image"]
        )


@pytest.mark.parametrize("resize", MODES)
def test_edges_of_an_image_are_those_of_training(tmp_path, resize):
    data = ControlDataConfig(
        image_size=16, resize=resize, canny_low=(50, 50), canny_sigma=1.0
    )
    how = Preparation.of_training(data, stored=False)
    for size in ((40, 30), (30, 40), (9, 12)):
        file = write_image(tmp_path / "image.png", *size)
        record = {"id": "a", "image": read_image(file)}
        example, _ = make_example(record, None, data, (0, 0))
        given = read_control(file, None, None, (16, 16), how, True, 1.0)
        np.testing.assert_array_equal(
            given.conditioning_image, example["conditioning_image"]
        )


def test_edges_are_never_resized(tmp_path):
    file = write_image(tmp_path / "edges.png", 24, 16)
    how = (Preparation(resize="stretch"), True, 1.0)
    given = read_control(None, file, None, (16, 16), *how)
    assert given.size == (24, 16)
    with pytest.raises(UserError, match="is 24x16, and --size is 16x16. Expected the"):
        read_control(None, file, (16, 16), (16, 16), *how)


@pytest.mark.release
def test_runs_and_what_they_publish_prepare_alike(tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    write_image(pictures / "a.png", 20, 30)
    control = write_image(pictures / "b.png", 40, 60, seed=1)
    row = {"file_name": "a.png", "text": "x", "conditioning_image": "b.png"}
    (pictures / "metadata.jsonl").write_text(json.dumps(row))
    everything_trains = {"train": 1.0, "validation": 0.0, "test": 0.0}
    root = tmp_path / "data"
    prepare("folder", pictures, root, fractions=everything_trains)
    config = get_config()
    config.data.update(root=str(root), image_size=16, resize="letterbox")
    run = tmp_path / "run"
    save_run(run, config=config, model__train_unet=False)
    source = load_source(workdir=str(run))
    data = source.data
    example, _ = make_example(open_dataset(data, "train")[0], None, data, (0, 0))
    wanted = example["conditioning_image"]
    np.testing.assert_array_equal(drawn_by(source, control), wanted)

    # What follows has to know it without the data.
    shutil.rmtree(root)
    whole = export(run, tmp_path / "whole", parity=False)
    alone = export(run, tmp_path / "alone", format="controlnet", parity=False)
    asked = []

    def download(name, patterns):
        asked.extend(patterns)
        return whole

    monkeypatch.setattr(sources, "_download", download)
    for place in (
        {"workdir": str(run)},
        {"pretrained": "owner/name"},
        {"pretrained": str(whole), "controlnet": str(alone)},
        {"pretrained": str(whole), "controlnet": str(whole / "controlnet")},
    ):
        source = load_source(**place)
        assert source.size == (16, 16)
        np.testing.assert_array_equal(drawn_by(source, control), wanted, str(place))
    assert ABOUT in asked
    # A ControlNet that is not ours takes edges.
    (alone / ABOUT).unlink()
    other = load_source(pretrained=str(whole), controlnet=str(alone))
    assert other.preparation == Preparation(resize="letterbox")


def test_a_single_file_lies_beside_what_is_said_of_it(tmp_path):
    about = {"image_size": 16}
    (tmp_path / ABOUT).write_text(json.dumps(about))
    (tmp_path / "control_run.safetensors").touch()
    assert published_about(str(tmp_path / "control_run.safetensors")) == about
    (tmp_path / ABOUT).unlink()
    assert published_about(str(tmp_path / "control_run.safetensors")) == {}
