"""The validation loss depends on the examples, not on the batches."""

import dataclasses

import jax
import pytest

from medjax import meshes
from medjax.data.config import DataConfig
from medjax.data.phantoms import PhantomsConfig, PhantomSource
from medjax.data.pipeline import dataset_metadata
from medjax.pretrained.tiny import tiny_tokenizer
from medjax.tasks.eval_config import EvalConfig
from medjax.tasks.interface import Outcome
from medjax.training import validation_loss
from medjax.training.validation_loss import ValidationLoss, held_out


@dataclasses.dataclass(frozen=True)
class Draws:
    """A task whose loss is a random number of the example, times its brightness."""

    def loss(self, params, frozen, batch, keys, train):
        draws = jax.vmap(jax.random.uniform)(keys)
        return Outcome(draws * (1 + batch["images"].mean((1, 2, 3))))

    def follow(self, statistics, observed, key):
        return statistics, {}

    def check(self, size, sampling):
        raise NotImplementedError

    def sample(self, *args):
        raise NotImplementedError


@pytest.mark.ci
def test_batches_change_nothing():
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    source = PhantomSource("validation", 16, 7, seed=0)
    losses = []
    for size in (1, 3, 8):
        data = DataConfig(image_size=16, batch_size=size, workers=0)
        validation = ValidationLoss(
            Draws(),
            source,
            tiny_tokenizer(),
            data,
            EvalConfig(examples=7),
            mesh,
            jax.random.key(0),
        )
        losses.append(validation.run({}, {}).metrics["val/loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_it_stops_between_two_batches():
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    source = PhantomSource("validation", 16, 7, seed=0)
    answers = [False, False, True]
    validation = ValidationLoss(
        Draws(),
        source,
        tiny_tokenizer(),
        DataConfig(image_size=16, batch_size=2, workers=0),
        EvalConfig(examples=7),
        mesh,
        jax.random.key(0),
        lambda: answers.pop(0),
    )
    assert validation.run({}, {}) is None
    # Asked before each of the four batches.
    answers += [False] * 4
    assert validation.run({}, {}) is not None
    assert not answers


def test_data_may_have_no_validation_split(monkeypatch, caplog):
    data = DataConfig(image_size=16, phantoms=PhantomsConfig(count=16), workers=0)
    assert len(held_out(data)) == 2
    described = dataclasses.replace(dataset_metadata(data), splits={"train": 16})
    monkeypatch.setattr(validation_loss, "dataset_metadata", lambda data: described)
    assert held_out(data) is None
    assert "no validation split" in caplog.text
