"""Files of images say how they were drawn."""

import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

from medjax.data.controls import Control, Preparation
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.sampling import image_files
from medjax.sampling.source import Source

SIZE = (8, 8)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw one black image with a seed; return its settings, and the seed it had."""
    seeds = []
    source = Source(tiny_stable_diffusion(), "tiny", SIZE, Preparation())

    def stages(model, requests, *_, seed, **options):
        seeds.append(seed)
        return iter([np.full((1, *SIZE, 3), -1.0)] * len(requests))

    monkeypatch.setattr(image_files, "generate_stages", stages)

    def drawn(seed: int) -> tuple[dict[str, object], str, int]:
        (file,) = image_files.sample(
            source,
            ["a"],
            Control(SIZE, None, None, {}),
            SamplingConfig(),
            tmp_path,
            mode="single",
            seed=seed,
        )
        with Image.open(file) as image:
            text = image.text
        return json.loads(text["medjax"]), text["parameters"], seeds[-1]

    return drawn


def test_a_seed_that_is_asked_for_is_kept(draw):
    about, line, used = draw(3)
    assert about["seed"] == used == 3
    assert "Seed: 3," in line


def test_a_seed_that_is_drawn_is_reported(draw, caplog):
    caplog.set_level(logging.INFO, "medjax")
    about, line, used = draw(-1)
    assert about["seed"] == used
    assert 0 <= used < 2**32
    assert f"Seed: {used}," in line
    assert re.search(rf"random seed: --seed={used}$", caplog.text, re.MULTILINE)
    # Two draws of 32 bits agree once in four billion times.
    assert draw(-1)[2] != used
