"""A run of adapters with all options of a run: trained, resumed, sampled."""

import csv
import dataclasses

import jax
import numpy as np
import pytest

from medjax import trees
from medjax.data.controls import Control
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.models.lora import is_adapter
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.runs.config import parse
from medjax.runs.open_run import load_run
from medjax.sampling.image_files import sample
from medjax.sampling.source import load_source
from medjax.training.loop import train
from tests.tiny_lora import get_config


def config(**train_fields):
    made = get_config()
    made.model.update(dtype="bfloat16", cache_latents=True, remat="full")
    made.model.unet_lora.dropout = 0.2
    made.diffusion.update(min_snr_gamma=5.0, caption_dropout=0.5)
    made.optim.update(learning_rate=1e-2, schedule="cosine", ema_decay=0.9)
    made.optim.text_encoder.learning_rate = 1e-3
    made.optim.text_encoder.weight_decay = 0.1
    made.train.update(checkpoint_every=1, log_every=1, **train_fields)
    return parse(made)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(config(steps=2), workdir)


@pytest.mark.release
def test_resumed_it_is_as_if_never_stopped(uninterrupted, tmp_path):
    whole = config(steps=2)
    for hours in (1e-9, None):
        plan = dataclasses.replace(whole.train, max_hours=hours)
        state = train(dataclasses.replace(whole, train=plan), tmp_path)
    assert int(state.step) == 2
    for a, b in zip(
        jax.tree.leaves(state), jax.tree.leaves(uninterrupted[1]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.release
def test_the_state_is_of_adapters_alone_and_rates_are_told(uninterrupted):
    workdir, state = uninterrupted
    for tree in (state.params, state.ema_params):
        others = [p for p in trees.flatten(tree) if not is_adapter(p)]
        assert others == ["unet/conv_in/kernel"]
    with (workdir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["train/learning_rate"]) == pytest.approx(1e-2)
    own = "train/learning_rate_text_encoder"
    assert [float(row[own]) for row in rows] == pytest.approx([1e-3, 5e-4])
    assert float(rows[-1]["val/loss"]) > 0 and rows[-1]["val/ssim"]


@pytest.mark.release
def test_clipping_and_schedule_change_a_run(uninterrupted, tmp_path):
    whole = config(steps=2)
    path = "unet/conv_in/kernel"
    start = trees.flatten(tiny_stable_diffusion().unet.params)["conv_in/kernel"]

    def moved(state):
        return np.linalg.norm(trees.flatten(state.params)[path] - start)

    changed = {
        key: train(
            dataclasses.replace(
                whole, optim=dataclasses.replace(whole.optim, **{key: value})
            ),
            tmp_path / key,
        )
        # Adam's update depends on the size of a gradient only if that is below ε.
        for key, value in (("clip_norm", 1e-10), ("schedule", "constant"))
    }
    assert moved(changed["clip_norm"]) < 0.1 * moved(uninterrupted[1])
    # The second step has the full learning rate and not half of it.
    assert moved(changed["schedule"]) > 1.1 * moved(uninterrupted[1])


@pytest.mark.release
def test_what_is_read_again_is_the_base_and_the_average(uninterrupted):
    workdir, state = uninterrupted
    base, sd = tiny_stable_diffusion(), load_run(workdir).sd
    average = trees.flatten(jax.device_get(state.ema_params))
    for network in ("unet", "text_encoder"):
        before = trees.flatten(getattr(base, network).params)
        for path, leaf in trees.flatten(getattr(sd, network).params).items():
            layer = f"{network}/{path.rpartition('/')[0]}"
            if f"{network}/{path}" in average:
                np.testing.assert_array_equal(leaf, average[f"{network}/{path}"])
            elif f"{layer}/lora_a" in average and path.endswith("kernel"):
                scale = {"unet": 2.0, "text_encoder": 1.5}[network]
                a, b = (average[f"{layer}/lora_{x}"] for x in "ab")
                np.testing.assert_allclose(
                    leaf, before[path] + scale * (a @ b), rtol=1e-6
                )
                assert (leaf != before[path]).any()
            else:
                np.testing.assert_array_equal(leaf, before[path])


@pytest.mark.release
def test_it_draws_images(uninterrupted, tmp_path):
    source = load_source(workdir=str(uninterrupted[0]))
    control, steps = Control(source.size, None, None, {}), SamplingConfig(steps=2)
    files = sample(source, ["chest x-ray"], control, steps, tmp_path, mode="single")
    assert [file.name for file in files] == ["0000.png"]
