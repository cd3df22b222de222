"""A page depends on the examples, not on the batches."""

import dataclasses

import jax
import numpy as np
import pytest

from medjax import meshes
from medjax.data.config import DataConfig
from medjax.data.phantoms import PhantomSource
from medjax.pretrained.tiny import tiny_tokenizer
from medjax.tasks.eval_config import EvalConfig
from medjax.training.sample_pages import SamplePages


@dataclasses.dataclass(frozen=True)
class Brightness:
    """A task whose sample is the image, with a random brightness by its key."""

    def loss(self, *args, **options):
        raise NotImplementedError

    def follow(self, *args):
        raise NotImplementedError

    def check(self, size, sampling):
        raise NotImplementedError

    def sample(self, params, frozen, batch, keys, sampling):
        draws = jax.vmap(jax.random.uniform)(keys)[:, None, None, None]
        return {"drawn": draws * batch["images"], "real": batch["images"]}


def make_pages(samples, size, measure, **options):
    return SamplePages(
        Brightness(),
        PhantomSource("validation", 16, 40, seed=0),
        tiny_tokenizer(),
        DataConfig(image_size=16, batch_size=size, workers=0),
        EvalConfig(samples=samples),
        meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1]),
        jax.random.key(0),
        measure,
        **options,
    )


@pytest.mark.ci
def test_a_page_is_the_same_in_batches():
    seen = []

    def measure(shown, data, config):
        seen.append(shown)
        return {"n": float(len(shown.records))}

    few, many = (make_pages(37, size, measure).run({}, {}) for size in (3, 64))
    assert few.metrics == many.metrics == {"val/n": 37}
    np.testing.assert_array_equal(few.page, many.page)
    for name in ("drawn", "real"):
        one, other = (shown.columns[name] for shown in seen)
        assert len(one) == len(seen[0].batch["images"]) == 37
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_it_stops_between_two_batches():
    answers = [False, False, True]
    pages = make_pages(7, 2, lambda *_: {}, asked_to_stop=lambda: answers.pop(0))
    assert pages.run({}, {}) is None
    # Asked before each of the four batches.
    answers += [False] * 4
    assert pages.run({}, {}) is not None
    assert not answers


def test_measures_of_training_examples_are_not_called_validation():
    pages = make_pages(2, 2, lambda *_: {"ssim": 1.0}, split="train")
    assert pages.run({}, {}).metrics == {"train/ssim": 1.0}
