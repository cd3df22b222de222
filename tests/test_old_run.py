"""A run of an older version resumes, samples and exports as in that version."""

import csv
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from configs import cxr_lora
from medjax.data.controls import Control
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.export import export
from medjax.runs.checksums import write_checksums
from medjax.runs.config import RunConfig, completed, parse
from medjax.sampling.image_files import sample
from medjax.sampling.source import load_source
from medjax.training.loop import train

pytestmark = pytest.mark.ci

OLD = Path(__file__).with_name("old_run")


def run_config() -> RunConfig:
    """Return the config of the run, with today's keys."""
    config = cxr_lora.get_config("demo")
    config.model.pretrained = ""
    for adapters, targets in (
        (config.model.unet_lora, ("to_q", "to_v")),
        (config.model.text_encoder_lora, ("q_proj", "v_proj")),
    ):
        adapters.rank, adapters.targets = 2, targets
    config.data.update(image_size=32, folds=0, batch_size=4)
    config.data.phantoms.count = 64
    config.train.update(steps=4, log_every=1, checkpoint_every=2, keep_last=4)
    config.eval.update(every=2, sample_every=4, examples=4, samples=2, sampler_steps=3)
    # This takes long, and may differ when a run resumes.
    config.eval.chest_findings = False
    config.best.patience = None
    return parse(config)


def unpacked(folder: Path) -> Path:
    with tarfile.open(OLD / "run.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def losses(workdir: Path) -> dict[str, dict[str, float]]:
    """Return the losses by step, as in ``losses.json``."""
    with (workdir / "metrics.csv").open() as file:
        return {
            row["step"]: {
                name: float(row[name])
                for name in ("train/loss", "val/loss")
                if row[name]
            }
            for row in csv.DictReader(file)
        }


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The workdir of the resumed run, and its state."""
    workdir = unpacked(tmp_path_factory.mktemp("old"))
    return workdir, train(run_config(), workdir)


def test_it_resumes_with_the_losses_that_it_had(resumed):
    found = losses(resumed[0])
    for step, wanted in json.loads((OLD / "losses.json").read_text()).items():
        # Bit for bit if compiled as there; other programs round in other places.
        assert found[step] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.release
def test_it_resumes_as_if_todays_version_had_saved_it(resumed, tmp_path):
    checkpoint = unpacked(tmp_path) / "checkpoints" / "2"
    file = checkpoint / "about" / "metadata"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"config": completed(about["config"])}))
    write_checksums(checkpoint)
    state = train(run_config(), tmp_path)
    assert losses(tmp_path) == losses(resumed[0])
    jax.tree.map(np.testing.assert_array_equal, state, resumed[1])


def test_it_samples_the_image_that_it_did(tmp_path):
    source = load_source(workdir=str(unpacked(tmp_path / "run")))
    sampling = SamplingConfig(
        sampler="pndm", steps=3, guidance_scale=source.guidance_scale
    )
    control = Control(source.size, None, None, {})
    (file,) = sample(
        source, ["large heart"], control, sampling, tmp_path / "out", mode="single"
    )
    drawn, wanted = (
        np.asarray(Image.open(one), np.int16) for one in (file, OLD / "sample.png")
    )
    assert np.abs(drawn - wanted).max() <= 1


def test_it_exports_the_adapters_that_it_did(tmp_path):
    target = export(unpacked(tmp_path / "run"), tmp_path / "out")
    name = "pytorch_lora_weights.safetensors"
    wanted, written = load_file(OLD / name), load_file(target / name)
    assert wanted.keys() == written.keys()
    for key in wanted:
        np.testing.assert_allclose(written[key], wanted[key], atol=1e-6)
