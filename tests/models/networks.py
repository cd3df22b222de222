"""Small torch networks with drawn weights, of the kinds that SD1.x and SD2.x have.

Every one of them goes to a folder and comes back through our own loader, so that the
tests of numbers stand on the same mapping of names that users rely on.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

EMBEDDING = (16, 32, 48, 48)
# As the published ones end: attention, then none.
LEVELS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
UNETS = {
    "sd1": {
        **LEVELS,
        "block_out_channels": (32, 64),
        "attention_head_dim": 4,
        "cross_attention_dim": 48,
        "sample_size": 8,
    },
    "sd2": {
        **LEVELS,
        "block_out_channels": (32, 64),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 80,
        "norm_num_groups": 16,
        "layers_per_block": 1,
        "use_linear_projection": True,
        "upcast_attention": True,
        "sample_size": 8,
    },
    "odd": {
        **LEVELS,
        "block_out_channels": (24, 48),
        "attention_head_dim": 3,
        "cross_attention_dim": 40,
        "norm_num_groups": 6,
        "layers_per_block": 1,
        "transformer_layers_per_block": 2,
        "sample_size": 16,
    },
}
# As many levels as the published ones, with the blocks that diffusers chooses.
for _kind, _heads in (("sd1", 4), ("sd2", (2, 4, 8, 8))):
    UNETS[f"{_kind}-deep"] = {
        **{k: v for k, v in UNETS[_kind].items() if k not in LEVELS},
        "block_out_channels": (32, 64, 64, 64),
        "attention_head_dim": _heads,
        "layers_per_block": 2,
        "sample_size": 16,
    }
# Height and width of the latents for each: square, not square, not divisible by 2.
SIZES = {
    "sd1": (8, 8),
    "sd2": (8, 4),
    "odd": (13, 9),
    "sd1-deep": (16, 16),
    "sd2-deep": (16, 8),
}
VAES = {
    "sd1": {"block_out_channels": (16, 32), "norm_num_groups": 16},
    "sd2": {"block_out_channels": (32, 64), "norm_num_groups": 32},
    "odd": {"block_out_channels": (12, 24, 24), "norm_num_groups": 6},
    "sd1-deep": {"block_out_channels": (16, 32, 32, 32), "norm_num_groups": 16},
}
VAES["sd2-deep"] = VAES["sd2"]
TEXTS = {
    "sd1": {"hidden_size": 48, "num_attention_heads": 4, "hidden_act": "quick_gelu"},
    "sd2": {"hidden_size": 80, "num_attention_heads": 5, "hidden_act": "gelu"},
    "odd": {"hidden_size": 40, "num_attention_heads": 2, "hidden_act": "quick_gelu"},
}
TEXTS |= {f"{kind}-deep": TEXTS[kind] for kind in ("sd1", "sd2")}


def draw(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill every weight, zero convolutions too, so that each shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(drawn / np.sqrt(weight[0].numel()))
            else:
                weight.add_(0.1 * drawn)
    return module.eval()


def unet(kind: str) -> UNet2DConditionModel:
    """Return a U-Net."""
    return draw(UNet2DConditionModel(**UNETS[kind]))


def controlnet(kind: str) -> ControlNetModel:
    """Return a ControlNet that fits that U-Net."""
    unused = ("up_block_types", "sample_size", "upcast_attention")
    config = {k: v for k, v in UNETS[kind].items() if k not in unused}
    return draw(
        ControlNetModel(**config, conditioning_embedding_out_channels=EMBEDDING), 1
    )


def vae(kind: str) -> AutoencoderKL:
    """Return an autoencoder."""
    config = VAES[kind]
    levels = len(config["block_out_channels"])
    return draw(
        AutoencoderKL(
            **config,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
        ),
        2,
    )


def text_encoder(kind: str) -> CLIPTextModel:
    """Return a text encoder."""
    config = CLIPTextConfig(
        **TEXTS[kind],
        vocab_size=99,
        intermediate_size=96,
        num_hidden_layers=2,
        bos_token_id=97,
        eos_token_id=98,
        pad_token_id=98,
    )
    return draw(CLIPTextModel(config), 3)
