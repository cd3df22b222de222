"""Blocks of the U-Net and of the KL autoencoder."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """Apply norm–SiLU–conv twice, and add the input.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels. If it differs, the input passes a 1×1
            convolution before it is added.
        groups: Number of groups of both norms.
        epsilon: Number that both norms add to the variance.
        embedding: Number of channels of the time embedding; 0 means no embedding.
    """

    def __init__(
        self, inputs: int, outputs: int, groups: int, epsilon: float, embedding: int = 0
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, epsilon)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        if embedding:
            self.time_emb_proj = nn.Linear(embedding, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, epsilon)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Return a feature map (b c h w); `temb` (b d) is the time embedding."""
        y = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            y = y + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class SelfAttention(nn.Module):
    """Apply a norm and attention of all pixels to each other, and add the input.

    Args:
        channels: Number of channels.
        heads: Number of heads; divides the channels.
        groups: Number of groups of the norm.
        epsilon: Number that the norm adds to the variance.
    """

    def __init__(self, channels: int, heads: int, groups: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, channels, epsilon)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map (b c h w)."""
        y = self.group_norm(x).flatten(2).transpose(1, 2)

        def split(y: Tensor) -> Tensor:
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.to_q(y)), split(self.to_k(y)), split(self.to_v(y))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out[0](y).transpose(1, 2).reshape(x.shape)


class Resample(nn.Module):
    """A convolution named ``conv``, with stride 2 or after doubling the size.

    Args:
        channels: Number of channels.
        up: Whether to double height and width (nearest neighbour), with stride 1.
            If False, the stride is 2.
        padding: Number of zeros on each side of the input. If it is 0 and `up` is
            False, one row of zeros is added at the bottom and one column at the right.
    """

    def __init__(self, channels: int, up: bool, padding: int = 1) -> None:
        super().__init__()
        self.up, self.pad = up, padding == 0
        self.conv = nn.Conv2d(
            channels, channels, 3, stride=1 if up else 2, padding=padding
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of twice or half the height and width."""
        if self.up:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        elif self.pad:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Level(nn.Module):
    """The blocks at one resolution: residual blocks, some with attention after them.

    Args:
        inputs: Number of input channels of each residual block.
        width: Number of output channels of each block.
        groups: Number of groups of every norm.
        epsilon: Number that norms add to the variance.
        heads: Number of heads of every attention.
        attentions: Number of attentions. The first residual blocks have them.
        embedding: Number of channels of the time embedding; 0 means no embedding.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        width: int,
        groups: int,
        epsilon: float,
        heads: int = 1,
        attentions: int = 0,
        embedding: int = 0,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(one, width, groups, epsilon, embedding) for one in inputs
        )
        self.attentions = nn.ModuleList(
            SelfAttention(width, heads, groups, epsilon) for _ in range(attentions)
        )
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()

    def block(self, i: int, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Return the result of residual block `i` and of the attention after it."""
        x = self.resnets[i](x, temb)
        return self.attentions[i](x) if i < len(self.attentions) else x

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Apply all blocks, then the change of resolution, if any."""
        for i in range(len(self.resnets)):
            x = self.block(i, x, temb)
        for change in (*self.downsamplers, *self.upsamplers):
            x = change(x)
        return x
