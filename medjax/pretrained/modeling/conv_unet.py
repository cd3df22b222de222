"""The U-Net of plain convolutions, with batch normalisation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medjax.pretrained.modeling.embedding import timestep_embedding

TIME_CHANNELS = 32


class ConvBlock(nn.Module):
    """Apply conv–norm–ReLU twice, and add ReLU(linear(time)) between.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        residual: Whether the input is added before the last ReLU.
    """

    def __init__(self, inputs: int, outputs: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.time_emb_proj = nn.Linear(TIME_CHANNELS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs or not residual
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)
        self.norm_shortcut = nn.Identity() if same else nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """Return a feature map (b c h w); `temb` (b d) is the time embedding."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = y + F.relu(self.time_emb_proj(temb))[:, :, None, None]
        y = self.norm2(self.conv2(y))
        if self.residual:
            y = y + self.norm_shortcut(self.conv_shortcut(x))
        return F.relu(y)


class ConvLevel(nn.Module):
    """The blocks at one resolution, and the convolution that doubles it, if any.

    Args:
        inputs: Number of channels of the first block's input.
        width: Number of output channels of each block.
        layers: Number of blocks.
        residual: Whether blocks are residual.
        below: Number of channels of the coarser feature map, whose height and width
            ``conv`` doubles; 0 means no such map.
    """

    def __init__(
        self, inputs: int, width: int, layers: int, residual: bool, below: int = 0
    ) -> None:
        super().__init__()
        if below:
            self.conv = nn.ConvTranspose2d(below, width, 2, stride=2)
        sizes = [inputs, *[width] * (layers - 1)]
        self.block = nn.ModuleList(ConvBlock(one, width, residual) for one in sizes)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """Return a feature map (b c h w); `temb` (b d) is the time embedding."""
        for block in self.block:
            x = block(x, temb)
        return x


class ConvUNet(nn.Module):
    """Predict noise, velocity or clean images from noisy ones.

    Batch normalisation uses its running averages, so keep the network in the mode
    ``eval()``, in which `load` returns it.

    Args:
        channels: Number of input and output channels.
        block_out_channels: Number of channels of each level. The last level is the
            bottleneck and has one block.
        layers_per_block: Number of blocks of every other level.
        residual: Whether blocks are residual. If so, a norm precedes the output.
        num_classes: Number of classes, without the additional class "none".
    """

    def __init__(
        self,
        channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        residual: bool,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.channels, self.num_classes = channels, num_classes
        self.downsampling = 2 ** (len(block_out_channels) - 1)
        self.time_embedding = nn.Linear(TIME_CHANNELS, TIME_CHANNELS)
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes + 1, TIME_CHANNELS)
        *widths, bottleneck = block_out_channels
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = channels
        for width in widths:
            self.down.append(ConvLevel(before, width, layers_per_block, residual))
            before = width
        self.mid_block = nn.ModuleList([ConvBlock(before, bottleneck, residual)])
        before = bottleneck
        for width in reversed(widths):
            self.up.append(
                ConvLevel(2 * width, width, layers_per_block, residual, before)
            )
            before = width
        self.norm_out = nn.BatchNorm2d(before) if residual else nn.Identity()
        self.conv_out = nn.Conv2d(before, channels, 1)

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
        sines = timestep_embedding(timesteps, TIME_CHANNELS)
        temb = F.relu(self.time_embedding(sines))
        if labels is not None:
            temb = temb + self.class_embedding(labels)
        x, kept = z, []
        for down in self.down:
            x = down(x, temb)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.mid_block[0](x, temb)
        for up in self.up:
            x = up(torch.cat([kept.pop(), up.conv(x)], dim=1), temb)
        return self.conv_out(self.norm_out(x))
