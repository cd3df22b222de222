"""At the size of Stable Diffusion 1.5 the trees have the published counts."""

import pytest

from medjax import trees
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.controlnet import ControlNet
from medjax.models.unet_2d_condition import UNet2DCondition

CLIP_LARGE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}


@pytest.mark.parametrize(
    ("module", "count"),
    [
        pytest.param(UNet2DCondition(), 859_520_964, marks=pytest.mark.ci),
        (ControlNet(), 361_279_120),
        (AutoencoderKL(), 83_653_863),
        (CLIPText.from_config(CLIP_LARGE), 123_060_480),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameter_counts(module, count):
    assert trees.count(module.param_shapes()) == count
