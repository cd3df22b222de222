"""Cached latents equal those of the autoencoder, and are computed only once."""

import dataclasses
import os
import pickle
import signal

import jax
import numpy as np
import pytest

from medjax import meshes, trees
from medjax.config_files import load_config
from medjax.data.config import DataConfig
from medjax.data.phantoms import PhantomsConfig, PhantomSource
from medjax.data.pipeline import make_batches
from medjax.diffusion.objective import DiffusionConfig
from medjax.errors import Stopped, UserError
from medjax.pretrained.tiny import tiny_tokenizer
from medjax.runs.config import parse
from medjax.tasks import TASKS
from medjax.tasks.interface import TaskInputs
from medjax.tasks.text_to_image import TextToImageConfig, make_text_to_image_task
from medjax.training.latent_cache import cache_latents
from medjax.training.stop import StopRequest
from tests.cached import cached_examples_of, tiny_run

pytestmark = pytest.mark.devices(2)

DATA = DataConfig(
    image_size=16, batch_size=4, phantoms=PhantomsConfig(count=6), workers=0
)
INPUTS = {"base": {"source": "", "fingerprint": "a"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    model = TextToImageConfig(pretrained="", cache_latents=True, dtype="float32")
    assembly = make_text_to_image_task(
        TaskInputs(model, DATA, DiffusionConfig(), jax.random.key(0))
    )
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2), jax.devices()[:2])
    frozen = meshes.place_params(assembly.frozen, mesh)
    source = PhantomSource("train", 16, 6)
    folder = tmp_path_factory.mktemp("latents")

    def cache(data=DATA, inputs=INPUTS, weights=frozen, stop=None, source=source):
        return cache_latents(
            source,
            data,
            inputs,
            assembly.posterior,
            weights,
            mesh,
            folder,
            stop or StopRequest(),
        )

    return assembly, source, cache, folder


def test_batches_have_what_the_autoencoder_says(world):
    assembly, source, cache, _ = world
    cached = pickle.loads(pickle.dumps(cache()))
    assert len(cached) == 6
    online = next(make_batches(source, tiny_tokenizer(), DATA))
    kept = next(make_batches(cached, tiny_tokenizer(), DATA))
    assert "images" not in kept
    np.testing.assert_array_equal(kept["text_ids"], online["text_ids"])
    images = jax.numpy.asarray(online["images"])
    mean, logvar = assembly.posterior(assembly.frozen, images)
    np.testing.assert_allclose(kept["latents_mean"], mean, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(kept["latents_logvar"], logvar, rtol=2e-3, atol=2e-3)


@pytest.mark.ci
def test_a_loss_is_the_same_with_cached_latents(world):
    assembly, source, cache, _ = world
    keys = jax.random.split(jax.random.key(1), 4)

    @jax.jit
    def loss(batch):
        return assembly.task.loss(
            assembly.params, assembly.frozen, batch, keys, False
        ).losses

    online, kept = (
        jax.tree.map(jax.numpy.asarray, next(make_batches(s, tiny_tokenizer(), DATA)))
        for s in (source, cache())
    )
    np.testing.assert_allclose(loss(kept), loss(online), rtol=1e-2)


def test_latents_are_computed_once_for_the_same_inputs(world):
    _, _, cache, folder = world
    before = cache().rows.folder
    (before / "seen").touch()
    assert (cache().rows.folder / "seen").exists()
    other = {"base": {"source": "", "fingerprint": "b"}}
    assert not (cache(inputs=other).rows.folder / "seen").exists()
    stretched = dataclasses.replace(DATA, resize="stretch")
    assert cache(stretched).rows.folder != before
    assert not list(folder.glob("*.incomplete"))


def test_latents_named_by_the_former_fingerprint_are_found(world):
    _, _, cache, _ = world
    former = {"base": {"source": "", "fingerprint": "former"}}
    (cache(inputs=former).rows.folder / "seen").touch()
    now = {"fingerprint": "full-0", "sparse_fingerprint": "former"}
    found = cache(inputs={"base": {"source": "", **now}}).rows.folder
    assert (found / "seen").exists()
    # After that, they have the new name.
    assert cache(
        inputs={"base": {"source": "", "fingerprint": "full-0"}}
    ).rows.folder == (found)


def test_latents_that_were_damaged_are_computed_again(world, caplog):
    _, _, cache, _ = world
    file = cache().rows.folder / "latents_mean.npy"
    before = file.read_bytes()
    for damaged in (before[:-8], before[:-8] + bytes(8)):
        file.write_bytes(damaged)
        cache()
        assert file.read_bytes() == before
        assert "latents_mean.npy does not match its checksum" in caplog.text
        caplog.clear()


@pytest.mark.ci
def test_another_fold_has_latents_of_its_own(world):
    _, _, cache, _ = world
    folds = [dataclasses.replace(DATA, folds=2, fold=fold) for fold in (0, 1)]
    assert len({cache(data).rows.folder for data in (DATA, *folds)}) == 3
    assert (
        cache(source=PhantomSource("train", 16, 5)).rows.folder != cache().rows.folder
    )


@pytest.mark.parametrize("recipe", ["cxr_lora", "cxr_controlnet"])
def test_padded_images_are_refused_before_anything_is_loaded(recipe):
    config = load_config("config", recipe)
    config.model.cache_latents, config.data.resize = True, "letterbox"
    with pytest.raises(UserError, match="cannot store the mask of the padding"):
        parse(config)


@pytest.mark.ci
def test_images_are_not_cached_for_latents_that_are(tmp_path, caplog):
    cached_examples_of("cxr_text_to_image", tmp_path, cache=str(tmp_path / "images"))
    assert not (tmp_path / "images").exists()
    assert "is not used, because config.model.cache_latents" in caplog.text


@pytest.mark.ci
def test_weights_of_another_precision_have_latents_of_their_own(world):
    assembly, _, cache, _ = world
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2), jax.devices()[:2])
    coarse = meshes.place_params(trees.cast(assembly.frozen, "bfloat16"), mesh)
    assert cache(weights=coarse).rows.folder != cache().rows.folder


class StopAfter(StopRequest):
    """A request to stop that comes after this many checks."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    @property
    def signal(self):
        self.times -= 1
        return signal.SIGTERM if self.times < 0 else None

    @signal.setter
    def signal(self, _):
        pass


@pytest.mark.parametrize("torn", [0, pytest.param(3, marks=pytest.mark.ci)])
def test_it_stops_between_two_batches_and_goes_on_from_there(world, torn):
    _, source, cache, folder = world
    inputs = {"base": {"source": "", "fingerprint": f"torn by {torn}"}}
    with pytest.raises(Stopped, match="caching latents: 4 of 6.*resumes"):
        cache(inputs=inputs, stop=StopAfter(1))
    (begun,) = folder.glob("*.incomplete")
    if torn:
        # As a crash may leave it: three images are complete.
        file = begun / "latents_logvar.npy"
        os.truncate(file, file.stat().st_size - torn)
    read = []
    listening = Listening(source, read)
    kept, whole = cache(inputs=inputs, source=listening), cache()
    assert sorted(set(read)) == ([3, 4, 5] if torn else [4, 5])
    assert not begun.exists()
    assert len(kept) == 6
    for i in range(6):
        for name, value in whole[i].items():
            np.testing.assert_array_equal(kept[i][name], value)


@dataclasses.dataclass(frozen=True)
class Listening:
    """A source that records the indices that are read."""

    source: PhantomSource
    read: list

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.read.append(index)
        return self.source[index]


@pytest.mark.parametrize(
    "recipe",
    ["cxr_text_to_image", pytest.param("cxr_controlnet", marks=pytest.mark.ci)],
)
def test_a_task_reads_its_cached_examples(recipe, tmp_path):
    config, built, source = tiny_run(recipe)
    cached = pickle.loads(pickle.dumps(cached_examples_of(recipe, tmp_path)))
    assert len(cached) == len(source)
    online, kept = (
        next(make_batches(one, built.tokenizer, config.data))
        for one in (source, cached)
    )
    replaced = {"images", "text_ids"}
    assert online.keys() - kept.keys() == replaced
    for name in online.keys() & kept.keys():
        np.testing.assert_array_equal(kept[name], online[name])
    embedded = jax.jit(built.embed_text)(built.frozen, online["text_ids"])
    np.testing.assert_allclose(kept["text_embeddings"], embedded, rtol=2e-3, atol=2e-3)
    # As many embeddings as there are captions, which images may share.
    texts = {source[i]["text"] for i in range(len(source))}
    assert len(cached.rows.records) == len(texts)


@pytest.mark.ci
def test_without_its_caption_an_example_gets_the_empty_captions_embedding(tmp_path):
    config, built, source = tiny_run("cxr_text_to_image")
    cached = cached_examples_of("cxr_text_to_image", tmp_path)
    online, kept = (
        next(make_batches(one, built.tokenizer, config.data))
        for one in (source, cached)
    )
    online = online | {name: kept[name] for name in ("latents_mean", "latents_logvar")}
    keys = jax.random.split(jax.random.key(1), 8)
    losses = jax.jit(
        lambda batch: (
            built.task.loss(built.params, built.frozen, batch, keys, True).losses
        )
    )
    assert 0 < config.diffusion.caption_dropout < 1
    np.testing.assert_allclose(losses(kept), losses(online), rtol=1e-2)


def test_a_text_encoder_that_trains_embeds_captions_in_each_step():
    config = load_config("config", "cxr_lora:demo")
    config.model.update(pretrained="", cache_latents=True)
    config.model.text_encoder_lora.rank = 1
    config = parse(config)
    given = TaskInputs(config.model, config.data, config.diffusion, jax.random.key(0))
    built = TASKS[config.task].build(given)
    assert built.posterior is not None
    assert built.embed_text is None


@pytest.mark.ci
def test_a_controlnet_reads_cached_images_and_latents(tmp_path):
    config, built, _ = tiny_run("cxr_controlnet")
    with_images = cached_examples_of(
        "cxr_controlnet", tmp_path / "with", cache=str(tmp_path / "images")
    )
    without = cached_examples_of("cxr_controlnet", tmp_path / "without")
    assert list((tmp_path / "images").iterdir())
    first, second = (
        next(make_batches(one, built.tokenizer, config.data))
        for one in (with_images, without)
    )
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
