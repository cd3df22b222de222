"""The validation loss is of the examples, not of how they are batched."""

import dataclasses

import jax
import numpy as np
import pytest

from medjax import meshes
from medjax.data.config import DataConfig
from medjax.data.phantoms import PhantomsConfig, PhantomSource
from medjax.data.pipeline import dataset_metadata
from medjax.pretrained.tiny import tiny_tokenizer
from medjax.tasks.eval_config import EvalConfig
from medjax.tasks.interface import Outcome
from medjax.training import validation
from medjax.training.validation import held_out, make_sample, make_validate


@dataclasses.dataclass(frozen=True)
class Draws:
    """Its loss is what is drawn for the example, times how bright it is."""

    def loss(self, params, frozen, batch, keys, train):
        draws = jax.vmap(jax.random.uniform)(keys)
        return Outcome(draws * (1 + batch["images"].mean((1, 2, 3))))

    def follow(self, statistics, observed, key):
        return statistics, {}

    def check(self, size, sampling):
        raise NotImplementedError

    def sample(self, *args):
        raise NotImplementedError


def test_batches_change_nothing():
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    source = PhantomSource("validation", 16, 7, seed=0)
    losses = []
    for size in (1, 3, 8):
        data = DataConfig(image_size=16, batch_size=size, workers=0)
        validate = make_validate(
            Draws(),
            source,
            tiny_tokenizer(),
            data,
            EvalConfig(examples=7),
            mesh,
            jax.random.key(0),
        )
        losses.append(validate({}, {})["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@dataclasses.dataclass(frozen=True)
class Brightness(Draws):
    """It draws the image, as bright as its key says."""

    def sample(self, params, frozen, batch, keys, sampling):
        draws = jax.vmap(jax.random.uniform)(keys)[:, None, None, None]
        return {"drawn": draws * batch["images"], "real": batch["images"]}


def test_a_page_is_the_same_in_batches():
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    source = PhantomSource("validation", 16, 40, seed=0)
    pages, seen = [], []
    for size in (3, 64):
        sample = make_sample(
            Brightness(),
            source,
            tiny_tokenizer(),
            DataConfig(image_size=16, batch_size=size, workers=0),
            EvalConfig(samples=37),
            mesh,
            jax.random.key(0),
            lambda shown, data, config: seen.append(shown) or {"n": len(shown.records)},
        )
        pages.append(sample({}, {}))
    assert [page.metrics["n"] for page in pages] == [37, 37]
    np.testing.assert_array_equal(pages[0].grid, pages[1].grid)
    for name in ("drawn", "real"):
        few, many = (shown.columns[name] for shown in seen)
        assert len(few) == len(seen[0].batch["images"]) == 37
        np.testing.assert_allclose(few, many, rtol=1e-6)


def test_both_stop_between_two_batches():
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    source = PhantomSource("validation", 16, 7, seed=0)
    data = DataConfig(image_size=16, batch_size=2, workers=0)
    config = EvalConfig(examples=7, samples=7)
    how = (source, tiny_tokenizer(), data, config, mesh, jax.random.key(0))
    answers: list[bool] = []
    validate = make_validate(Draws(), *how, lambda: answers.pop(0))
    sample = make_sample(Brightness(), *how, lambda *_: {}, lambda: answers.pop(0))
    for evaluate in (validate, sample):
        answers += [False, False, True]
        assert evaluate({}, {}) is None
        # Asked before each of the four batches.
        answers += [False] * 4
        assert evaluate({}, {}) is not None
        assert not answers


def test_data_may_have_no_validation_split(monkeypatch, caplog):
    data = DataConfig(image_size=16, phantoms=PhantomsConfig(count=16), workers=0)
    assert len(held_out(data)) == 2
    described = dataclasses.replace(dataset_metadata(data), splits={"train": 16})
    monkeypatch.setattr(validation, "dataset_metadata", lambda data: described)
    assert held_out(data) is None
    assert "no validation split" in caplog.text
