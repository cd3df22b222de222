"""The U-Net with group normalisation. Its weights have the names of diffusers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medjax.pretrained.modeling.blocks import Level, Resample
from medjax.pretrained.modeling.embedding import timestep_embedding


class TimestepEmbedding(nn.Module):
    """Two dense layers with SiLU between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs)
        self.linear_2 = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding of sines and cosines (b c)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class UNet2D(nn.Module):
    """Predict noise, velocity or clean images from noisy ones.

    Args:
        channels: Number of input and output channels.
        block_out_channels: Number of channels of each level; 0 is the finest.
        layers_per_block: Number of residual blocks of each level.
        attention_levels: Numbers of the levels with self-attention. If any level has
            it, the middle has it, too.
        attention_head_dim: Number of channels of an attention head.
        norm_num_groups: Number of groups of every norm.
        num_classes: Number of classes, without the additional class "none".
    """

    def __init__(
        self,
        channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        attention_levels: Sequence[int],
        attention_head_dim: int,
        norm_num_groups: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        widths, last = list(block_out_channels), len(block_out_channels) - 1
        self.downsampling = 2**last
        self.channels, self.num_classes = channels, num_classes
        self.layers = layers_per_block

        def level(inputs: list[int], i: int, attentions: int) -> Level:
            heads = widths[i] // attention_head_dim if attentions else 1
            return Level(
                inputs,
                widths[i],
                norm_num_groups,
                1e-5,
                heads,
                attentions,
                embedding=4 * widths[0],
            )

        def attentions(i: int, layers: int) -> int:
            return layers if i in attention_levels else 0

        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes + 1, 4 * widths[0])
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        # Number of channels of each feature map that the decoder gets.
        kept = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            inputs = [kept[-1], *[width] * (layers_per_block - 1)]
            down = level(inputs, i, attentions(i, layers_per_block))
            if i < last:
                down.downsamplers.append(Resample(width, up=False))
            self.down_blocks.append(down)
            kept += [width] * (layers_per_block + (i < last))
        self.mid_block = level([widths[-1]] * 2, last, int(bool(attention_levels)))
        self.up_blocks = nn.ModuleList()
        before = widths[-1]
        for i in range(last, -1, -1):
            sizes = [before, *[widths[i]] * layers_per_block]
            inputs = [size + kept.pop() for size in sizes]
            up = level(inputs, i, attentions(i, layers_per_block + 1))
            if i > 0:
                up.upsamplers.append(Resample(widths[i], up=True))
            self.up_blocks.append(up)
            before = widths[i]
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], 1e-5)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(
        self, z: Tensor, timesteps: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Return ε, v or z_0 (b c h w), depending on the prediction type.

        Args:
            z: Noisy images (b c h w). Height and width are multiples of
                `downsampling`.
            timesteps: Timesteps (b), from 0 to T − 1.
            labels: Numbers of the classes (b); `num_classes` means no class.
        """
        temb = self.time_embedding(timestep_embedding(timesteps, self._width()))
        if labels is not None:
            temb = temb + self.class_embedding(labels)
        x = self.conv_in(z)
        kept = [x]
        for down in self.down_blocks:
            for i in range(self.layers):
                x = down.block(i, x, temb)
                kept.append(x)
            for halve in down.downsamplers:
                x = halve(x)
                kept.append(x)
        x = self.mid_block(x, temb)
        for up in self.up_blocks:
            for i in range(self.layers + 1):
                x = up.block(i, torch.cat([x, kept.pop()], dim=1), temb)
            for double in up.upsamplers:
                x = double(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _width(self) -> int:
        return self.conv_in.out_channels
