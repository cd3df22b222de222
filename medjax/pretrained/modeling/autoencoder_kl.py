"""The KL autoencoder of Stable Diffusion."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from medjax.pretrained.modeling.blocks import Level, Resample

KL_EPSILON = 1e-6


class KLHalf(nn.Module):
    """Encoder or decoder.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        widths: Number of channels of each level, in the order of computation.
        layers: Number of residual blocks of each level.
        groups: Number of groups of every norm.
        up: Whether it is the decoder.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int],
        layers: int,
        groups: int,
        up: bool,
    ) -> None:
        super().__init__()
        levels = nn.ModuleList()
        for i, width in enumerate(widths):
            sizes = [widths[max(i - 1, 0)], *[width] * (layers - 1)]
            level = Level(sizes, width, groups, KL_EPSILON)
            if i < len(widths) - 1:
                changes = level.upsamplers if up else level.downsamplers
                changes.append(Resample(width, up, padding=int(up)))
            levels.append(level)
        lowest = widths[0] if up else widths[-1]
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList() if up else levels
        self.mid_block = Level([lowest] * 2, lowest, groups, KL_EPSILON, attentions=1)
        self.up_blocks = levels if up else nn.ModuleList()
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], KL_EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return moments of images, or images of latents (b c h w)."""
        x = self.conv_in(x)
        for level in (*self.down_blocks, self.mid_block, *self.up_blocks):
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Encode images to the mean of their latents, and decode latents.

    Args:
        in_channels: Number of channels of the images.
        out_channels: Number of channels of the decoded images.
        block_out_channels: Number of channels of each level. Each level except the
            last halves the resolution.
        layers_per_block: Number of residual blocks of each level of the encoder.
        latent_channels: Number of channels of the latents.
        norm_num_groups: Number of groups of every norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        latent_channels: int,
        norm_num_groups: int,
    ) -> None:
        super().__init__()
        self.channels, self.latent_channels = in_channels, latent_channels
        self.downsampling = 2 ** (len(block_out_channels) - 1)
        widths, groups = list(block_out_channels), norm_num_groups
        moments = 2 * latent_channels
        self.encoder = KLHalf(
            in_channels, moments, widths, layers_per_block, groups, up=False
        )
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = KLHalf(
            latent_channels,
            out_channels,
            widths[::-1],
            layers_per_block + 1,
            groups,
            up=True,
        )

    def encode(self, images: Tensor) -> Tensor:
        """Return the mean of the latents (b d h w) of images (b c H W) in [-1, 1]."""
        return self.quant_conv(self.encoder(images)).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (b c H W), in about [-1, 1], of latents."""
        return self.decoder(self.post_quant_conv(latents))
