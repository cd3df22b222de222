"""Small networks with drawn weights and folders made of them, without torch."""

from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from medjax import trees
from medjax.pretrained import Network, StableDiffusion, layout
from medjax.pretrained.tiny import tiny_stable_diffusion

UNETS = {
    "sd1": {
        "block_out_channels": [16, 32],
        "attention_head_dim": 4,
        "norm_num_groups": 16,
    },
    "sd2": {
        "block_out_channels": [16, 32],
        "attention_head_dim": [2, 4],
        "norm_num_groups": 8,
        "use_linear_projection": True,
    },
    "odd": {
        "block_out_channels": [12, 24],
        "attention_head_dim": 3,
        "norm_num_groups": 6,
        "transformer_layers_per_block": 2,
    },
}
SHARED = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
}
CONFIGS = {
    "unet": {**SHARED, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]},
    "controlnet": {**SHARED, "conditioning_embedding_out_channels": [4, 8]},
    "vae": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
    },
    "text_encoder": {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    },
}
PARTS = layout.STABLE_DIFFUSION | layout.CONTROLNET


def network(name: str, kind: str = "sd1", dtype: str = "float32") -> Network:
    """Return a network with every weight drawn, zero convolutions too."""
    config = dict(CONFIGS[name])
    if name in ("unet", "controlnet"):
        config |= UNETS[kind]
    module = PARTS[name].module.from_config(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32).astype(dtype),
        module.param_shapes(),
    )
    return Network(module, params, config)


def stable_diffusion() -> StableDiffusion:
    """Return a whole one, whose text encoder fits its tokenizer."""
    sd = tiny_stable_diffusion()
    return StableDiffusion(
        unet=network("unet"),
        vae=network("vae"),
        text_encoder=sd.text_encoder,
        tokenizer=sd.tokenizer,
        schedule=sd.schedule,
    )


def rewrite(file: Path, change) -> None:
    """Replace a file's tensors by ``change(tensors)``, by the library's own code."""
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def assert_same(first, second) -> None:
    """Assert that two trees have the same paths, dtypes and bits."""
    a, b = trees.flatten(first), trees.flatten(second)
    assert list(a) == list(b)
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)
