"""phantom-SD, which comes with medjax: small, able to spell, and obedient."""

import jax
import numpy as np
import pytest

from configs import phantom_sd
from medjax import meshes
from medjax.data.captions import vocabulary
from medjax.data.phantoms import FINDINGS
from medjax.data.pipeline import open_dataset
from medjax.evaluation.chest import agreement, presence
from medjax.evaluation.similarity import psnr
from medjax.pretrained import load_stable_diffusion
from medjax.pretrained.phantom import FINDINGS as KNOWN
from medjax.pretrained.sources import PHANTOM_SD, local_place
from medjax.runs.config import parse
from medjax.sampling.generate import generate
from medjax.tasks.drawing import Request
from medjax.tasks.latent_scaling import decode, encode_mean


@pytest.fixture(scope="module")
def sd():
    return load_stable_diffusion(PHANTOM_SD)


def records(split, count):
    """Return examples of what it was trained or not trained on."""
    config = parse(phantom_sd.get_config())
    source = open_dataset(config.data, split)
    return config, [source[i] for i in range(count)]


def test_it_is_small():
    files = [f for f in local_place(PHANTOM_SD).rglob("*") if f.is_file()]
    assert sum(file.stat().st_size for file in files) <= 10e6


def test_its_words_are_tokens_and_any_other_can_be_spelt(sd):
    for word in vocabulary(KNOWN):
        assert len(sd.tokenizer(word).input_ids) == 3, word
    assert set(vocabulary(FINDINGS)) - set(vocabulary(KNOWN))
    for word in ("pneumothorax", "T-bone", "Übergröße"):
        ids = sd.tokenizer(word).input_ids
        assert len(ids) > 3
        spelt = sd.tokenizer.decode(ids, skip_special_tokens=True)
        assert spelt.replace(" ", "") == word.lower()


def test_what_it_was_never_told_is_as_loud_as_what_it_was(sd):
    params = sd.text_encoder.params["text_model"]["embeddings"]
    lengths = np.linalg.norm(params["token_embedding"]["embedding"], axis=-1)
    known = sd.tokenizer("chest effusion left right woman").input_ids[1:-1]
    new = sd.tokenizer("pneumothorax").input_ids[1:-1]
    assert lengths[new].mean() > 0.75 * lengths[known].mean()


@pytest.mark.ci
def test_its_latents_have_unit_variance_and_show_the_image(sd):
    _, some = records("train", 64)
    images = np.stack([record["image"] for record in some]).astype(np.float32)
    images = images / 127.5 - 1
    weights = {"network": sd.vae.params}
    encode = jax.jit(encode_mean, static_argnums=0)
    latents = np.asarray(encode(sd.vae.module, weights, images))
    scale = sd.vae.module.scaling_factor
    # Over 64 of the 8192 images that it was measured on.
    assert (latents * scale).std() == pytest.approx(1, abs=0.05)
    again = jax.jit(decode, static_argnums=0)(sd.vae.module, weights, latents)
    # Ribs are of a few percent of the contrast.
    assert psnr(images, np.asarray(again)).mean() > 32


@pytest.mark.release
@pytest.mark.usefixtures("optimized")
def test_it_obeys_its_captions():
    """Heart size and effusions of 200 held-out captions, as measured from pixels."""
    config, some = records("test", 200)
    texts = [record["text"] for record in some]
    requests = [Request(i, prompt=text) for i, text in enumerate(texts)]
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices())
    images = generate(
        load_stable_diffusion(PHANTOM_SD),
        requests,
        config.eval.sampling(),
        (64, 64),
        mesh,
        batch_size=16,
    )
    images = np.stack(list(images))
    scores, there = agreement(images, texts), presence(images, texts)
    assert scores["caption_agreement"] >= 0.85
    assert scores["caption_agreement_chance"] <= 0.4
    assert scores["heart_agreement"] >= 0.9
    assert there["effusion_presence"] >= 0.95
    assert there["effusion_presence_unasked"] <= 0.15
