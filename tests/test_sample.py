"""`python -m medjax.sample`: its samples, and the metadata in its files."""

import json

import numpy as np
import pytest
from PIL import Image

from medjax import sample as command
from medjax.data.config import DataConfig
from medjax.data.controls import Preparation, read_control
from medjax.data.edges import canny
from medjax.data.phantoms import PhantomsConfig
from medjax.data.pipeline import open_dataset
from medjax.diffusion.schedulers import SAMPLERS
from medjax.errors import UserError
from medjax.runs import open_run
from medjax.sampling import source
from tests import in_process
from tests.commands import medjax, one_line
from tests.saved_runs import save_run
from tests.smallest import save_smallest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, an X-ray, and a Stable Diffusion."""
    folder = tmp_path_factory.mktemp("sample")
    base = save_smallest(folder / "sd")
    save_run(folder / "run", model__pretrained=base)
    data = DataConfig(image_size=40, phantoms=PhantomsConfig(count=1))
    record = open_dataset(data, "train")[0]
    Image.fromarray(record["image"]).save(folder / "xray.png")
    return folder


@pytest.mark.ci
def test_a_run_draws_what_it_is_asked(place):
    typed = (
        f"--workdir={place}/run",
        f"--image={place}/xray.png",
        f"--out={place}/drawn",
        "--prompt=cardiomegaly, of any size",
        "--num=2",
        "--steps=2",
        "--seed=3",
        "--canny=50,120",
    )
    done = medjax("sample", *typed)
    assert done.returncode == 0, done.stderr
    assert "2 images of 64 × 64 by ddim in 2 steps" in done.stderr
    out = place / "drawn"
    names = ["0000.png", "0001.png", "grid-0000.png"]
    assert sorted(file.name for file in out.iterdir()) == names
    with Image.open(out / "0001.png") as image:
        about = json.loads(image.text["medjax"])
        first = np.asarray(image)
        assert (
            "cardiomegaly, of any size\nNegative prompt: \n" in image.text["parameters"]
        )
    assert first.shape == (64, 64, 3)
    assert about["seed"] == 3
    assert about["number"] == 1
    assert about["canny"] == [50, 120]
    assert (about["canny_sigma"], about["canny_backend"]) == (1, "opencv")
    assert about["resize"] == "center_crop"
    assert about["source"] == "run, step 2, ema weights"
    assert str(place) not in json.dumps(about)
    # The same command writes the same image to another file.
    done = in_process.medjax("sample", *typed, "--num=1")
    assert done.returncode == 0, done.stderr
    again, before = (np.asarray(Image.open(out / n)) for n in ("0002.png", "0000.png"))
    np.testing.assert_array_equal(again, before)
    assert np.abs(before.astype(int) - first).max() > 20


@pytest.mark.release
def test_a_folder_draws_a_line_a_prompt(place):
    (place / "prompts.txt").write_text("no finding\n\ncardiomegaly\n")
    typed = (
        f"--pretrained={place}/sd",
        f"--prompts={place}/prompts.txt",
        f"--out={place}/plain",
        "--size=16x24",
        "--steps=2",
        "--sampler=unipc",
    )
    done = in_process.medjax("sample", *typed)
    assert done.returncode == 0, done.stderr
    with Image.open(place / "plain" / "0001.png") as image:
        assert image.size == (24, 16)
        assert json.loads(image.text["medjax"])["prompt"] == "cardiomegaly"


@pytest.mark.release
def test_a_full_disk_is_told_in_one_line(place):
    limited = ("sh", "-c", 'ulimit -f 1 && exec "$@"', "sh")
    typed = (f"--pretrained={place}/sd", f"--out={place}/full", "--steps=1")
    done = medjax("sample", *typed, before=limited)
    assert "no --prompt: sampling with an empty caption" in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]


def test_the_flag_lists_the_samplers():
    assert tuple(SAMPLERS) == command._SAMPLERS


def control(
    place, image=True, edges=None, size=(32, 48), controlled=True, strength=1.0, **how
):
    return read_control(
        place / "xray.png" if image else None,
        edges,
        size,
        (64, 64),
        Preparation(**{"low": 50, "high": 100} | how),
        controlled,
        strength,
    )


@pytest.mark.parametrize(
    "model",
    [{"workdir": "run"}, {"pretrained": "sd", "controlnet": "any"}],
)
def test_a_missing_control_is_refused_before_weights_are_read(
    place, model, monkeypatch
):
    def reads(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(open_run, "read_trees", reads)
    monkeypatch.setattr(source, "load_stable_diffusion", reads)
    flags = [f"--{name}={place / value}" for name, value in model.items()]
    done = in_process.medjax("sample", *flags, f"--out={place}/none")
    assert "error: the ControlNet requires a control: set --edges" in done.stderr
    assert not (place / "none").exists()


def test_edges_are_found_in_the_resized_image(place):
    got = control(place)
    assert got.size == (32, 48)
    assert got.image is None
    with Image.open(place / "xray.png") as image:
        wide = image.convert("RGB").resize((48, 48), Image.Resampling.BICUBIC)
    want = canny(np.asarray(wide)[8:40], 50, 100) > 0
    assert got.conditioning_image.shape == (32, 48, 3)
    assert ((got.conditioning_image[..., 0] > 0) == want).mean() > 0.9


def test_given_edges_are_taken_as_they_are(place, tmp_path):
    drawn = (np.arange(16 * 16 * 3) % 256).astype(np.uint8).reshape(16, 16, 3)
    Image.fromarray(drawn).save(tmp_path / "edges.png")
    got = control(place, image=False, edges=tmp_path / "edges.png", size=None)
    assert got.size == (16, 16)
    np.testing.assert_allclose(got.conditioning_image * 255, drawn, atol=1e-4)


def test_an_image_to_begin_from_is_in_the_range_of_images(place):
    got = control(place, controlled=False, strength=0.5)
    assert got.conditioning_image is None
    assert -1 <= got.image.min() < -0.5 < got.image.max() <= 1


def test_edges_and_an_image_without_effect_are_refused(place):
    with pytest.raises(UserError, match="or remove --image, because --edges is set"):
        control(place, edges=place / "xray.png", size=None)


def test_an_image_is_resized_as_in_training(place, tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 20:] = 255
    Image.fromarray(wide).save(tmp_path / "xray.png")
    crop, padded, stretched = (
        control(tmp_path, size=(40, 40), strength=0.5, resize=mode)
        for mode in ("center_crop", "letterbox", "stretch")
    )
    assert (crop.image[:, 25:] > 0.9).all()
    # The padding is black and has no edges.
    assert (padded.image[:9] == -1).all()
    assert (padded.image[15:25, 25:] > 0.9).all()
    assert padded.conditioning_image[:10].max() == 0
    assert padded.conditioning_image.max() == 1
    assert (stretched.image[:, 25:] > 0.9).all()


def test_a_run_on_stored_controls_is_not_given_edges(place):
    with pytest.raises(UserError, match="trained on stored controls"):
        control(place, stored=True)
    got = control(place, image=False, edges=place / "xray.png", size=None, stored=True)
    assert got.conditioning_image.max() > 0.5


def test_one_of_several_processes_is_refused(place, monkeypatch):
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7"}
    slurm |= {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "a",
        "SLURM_LOCALID": "1",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    done = in_process.medjax("sample", f"--workdir={place}/run")
    assert "but several were started" in one_line(done)
