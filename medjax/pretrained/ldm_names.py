"""Map names of diffusers' torch classes to names of the original checkpoints.

A table maps prefixes of diffusers' names, in whole words, to prefixes of the original
names. Names without such a prefix, and the rest of a name after it, are equal. The map
is one to one, so the inverted table maps back. The original code numbers layers
consecutively, and diffusers numbers them by level:

| diffusers                      | original                                          |
|--------------------------------|---------------------------------------------------|
| ``down_blocks.i.resnets.j``    | ``input_blocks.n.0``, n = 1 + i (layers + 1) + j  |
| ``up_blocks.i.resnets.j``      | ``output_blocks.n.0``, n = i (layers + 1) + j     |
| an autoencoder's ``up_blocks`` | ``decoder.up``, in reverse order                  |

Shapes are equal, except in the autoencoder's attention: the original has 1×1
convolutions instead of dense layers.

Source: the original names are from CompVis/latent-diffusion's ``openaimodel.py`` and
``model.py``, lllyasviel/ControlNet's ``cldm.py`` and mlfoundations/open_clip's
``transformer.py``.
"""

from collections.abc import Mapping

from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.controlnet import ControlNet
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.models.unet_encoder import UNetEncoder

Table = dict[str, str]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def renamed(name: str, table: Mapping[str, str]) -> str:
    """Return the name with its longest prefix in the table replaced.

    >>> renamed("conv_in.weight", {"conv_in": "input_blocks.0.0"})
    'input_blocks.0.0.weight'
    """
    words = name.split(".")
    for end in range(len(words), 0, -1):
        prefix = table.get(".".join(words[:end]))
        if prefix is not None:
            return ".".join([prefix, *words[end:]])
    return name


def unet_table(unet: UNet2DCondition) -> Table:
    """Return the table of a U-Net, without its prefix ``model.diffusion_model.``."""
    table = _encoder(unet) | {"conv_norm_out": "out.0", "conv_out": "out.2"}
    layers = unet.layers_per_block + 1
    for i, kind in enumerate(unet.up_block_types):
        attends = kind != "UpBlock2D"
        for j in range(layers):
            block = f"output_blocks.{i * layers + j}"
            table |= _resnet(f"up_blocks.{i}.resnets.{j}", f"{block}.0")
            if attends:
                table[f"up_blocks.{i}.attentions.{j}"] = f"{block}.1"
        if i < len(unet.up_block_types) - 1:
            table[f"up_blocks.{i}.upsamplers.0"] = f"{block}.{1 + attends}"
    return table


def controlnet_table(controlnet: ControlNet) -> Table:
    """Return the table of a ControlNet, without its prefix ``control_model.``."""
    embedding = "controlnet_cond_embedding"
    halvings = len(controlnet.conditioning_embedding_out_channels) - 1
    levels = len(controlnet.block_out_channels)
    convolutions = [
        "conv_in",
        *(f"blocks.{i}" for i in range(2 * halvings)),
        "conv_out",
    ]
    return (
        _encoder(controlnet)
        | {
            # The activations between convolutions are numbered too.
            f"{embedding}.{name}": f"input_hint_block.{2 * i}"
            for i, name in enumerate(convolutions)
        }
        | {
            f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0"
            for i in range(levels * (controlnet.layers_per_block + 1))
        }
        | {"controlnet_mid_block": "middle_block_out.0"}
    )


def vae_table(vae: AutoencoderKL) -> Table:
    """Return the table of an autoencoder, without the prefix ``first_stage_model.``."""
    table = {}
    levels = len(vae.block_out_channels)
    for i in range(levels):
        down, up = f"encoder.down.{i}", f"decoder.up.{levels - 1 - i}"
        blocks = {f"encoder.down_blocks.{i}": down, f"decoder.up_blocks.{i}": up}
        for name, original in blocks.items():
            for j in range(vae.layers_per_block + 1):
                resnet = f"{name}.resnets.{j}"
                table[resnet] = f"{original}.block.{j}"
                table[f"{resnet}.conv_shortcut"] = f"{original}.block.{j}.nin_shortcut"
        table[f"encoder.down_blocks.{i}.downsamplers.0"] = f"{down}.downsample"
        table[f"decoder.up_blocks.{i}.upsamplers.0"] = f"{up}.upsample"
    for half in ("encoder", "decoder"):
        table[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for i in (0, 1):
            table[f"{half}.mid_block.resnets.{i}"] = f"{half}.mid.block_{i + 1}"
        for name, original in _VAE_ATTENTION.items():
            table[f"{half}.mid_block.attentions.0.{name}"] = (
                f"{half}.mid.attn_1.{original}"
            )
    return table


def open_clip_table(layers: int) -> Table:
    """Return the table of an OpenCLIP text encoder with this many layers.

    Names have no prefix ``cond_stage_model.model.``. The fused projection to queries,
    keys and values is treated as three projections.
    """
    table = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm": "ln_final",
    }
    for i in range(layers):
        for name, original in _OPEN_CLIP_LAYER.items():
            table[f"text_model.encoder.layers.{i}.{name}"] = (
                f"transformer.resblocks.{i}.{original}"
            )
    return table


def _encoder(network: UNetEncoder) -> Table:
    """Return the part of the table that a U-Net and its ControlNet share."""
    table = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.attentions.0": "middle_block.1",
        **_resnet("mid_block.resnets.0", "middle_block.0"),
        **_resnet("mid_block.resnets.1", "middle_block.2"),
    }
    layers = network.layers_per_block
    for i in range(len(network.block_out_channels)):
        first = 1 + i * (layers + 1)
        for j in range(layers):
            block = f"input_blocks.{first + j}"
            table |= _resnet(f"down_blocks.{i}.resnets.{j}", f"{block}.0")
            table[f"down_blocks.{i}.attentions.{j}"] = f"{block}.1"
        table[f"down_blocks.{i}.downsamplers.0.conv"] = (
            f"input_blocks.{first + layers}.0.op"
        )
    return table


def _resnet(name: str, original: str) -> Table:
    return {f"{name}.{a}": f"{original}.{b}" for a, b in _RESNET.items()}
