"""The VQ-VAE: an autoencoder whose latents are entries of a codebook."""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6


class VQBlock(nn.Module):
    """Apply norm–SiLU–conv twice, and add a 1×1 convolution of the input."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, EPSILON)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map (b c h w)."""
        y = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(y))) + self.conv_shortcut(x)


class VQAttention(nn.Module):
    """Apply a norm and attention of all pixels to each other, and add the input."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, channels, EPSILON)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map (b c h w)."""
        y = self.to_qkv(self.group_norm(x).flatten(2).transpose(1, 2))
        q, k, v = y.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out[0](y).transpose(1, 2).reshape(x.shape)


class VQLevel(nn.Module):
    """Residual blocks named ``block``, and ``conv``, which changes the resolution.

    Args:
        inputs: Number of input channels.
        width: Number of output channels.
        layers: Number of residual blocks.
        groups: Number of groups of every norm.
        up: Whether ``conv`` doubles height and width before the blocks. If not, it
            halves them after the blocks.
    """

    def __init__(
        self, inputs: int, width: int, layers: int, groups: int, up: bool
    ) -> None:
        super().__init__()
        self.up = up
        if up:
            self.conv = nn.ConvTranspose2d(inputs, inputs, 4, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(width, width, 4, stride=2, padding=1)
        sizes = [inputs, *[width] * (layers - 1)]
        self.block = nn.ModuleList(VQBlock(one, width, groups) for one in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of twice or half the height and width."""
        x = self.conv(x) if self.up else x
        for block in self.block:
            x = block(x)
        return x if self.up else self.conv(x)


class VQHalf(nn.Module):
    """Encoder or decoder.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        widths: Number of channels of each level, in the order of computation.
        layers: Number of residual blocks of each level.
        mid_layers: Number of residual blocks at the lowest resolution.
        heads: Number of heads of the attentions between these.
        groups: Number of groups of every norm.
        up: Whether it is the decoder.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int],
        layers: int,
        mid_layers: int,
        heads: int,
        groups: int,
        up: bool,
    ) -> None:
        super().__init__()
        self.decodes = up
        levels = [
            VQLevel(before, width, layers, groups, up)
            for before, width in itertools.pairwise(widths)
        ]
        lowest = widths[0] if up else widths[-1]
        if up:
            self.post_quant_conv = nn.Conv2d(inputs, inputs, 1)
        else:
            self.quant_conv = nn.Conv2d(outputs, outputs, 1)
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList([] if up else levels)
        self.mid_block = nn.ModuleList(
            VQBlock(lowest, lowest, groups) for _ in range(mid_layers)
        )
        self.mid_attention = nn.ModuleList(
            VQAttention(lowest, heads, groups) for _ in range(mid_layers - 1)
        )
        self.up = nn.ModuleList(levels if up else [])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return latents of images, or images of latents (b c h w)."""
        x = self.conv_in(self.post_quant_conv(x) if self.decodes else x)
        for level in self.down:
            x = level(x)
        for i, block in enumerate(self.mid_block):
            x = block(x)
            if i < len(self.mid_attention):
                x = self.mid_attention[i](x)
        for level in self.up:
            x = level(x)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x if self.decodes else self.quant_conv(x)


class VQVAE(nn.Module):
    """Encode images to latents, and decode entries of the codebook.

    Args:
        channels: Number of channels of the images.
        block_out_channels: Number of channels of each level. Each level except the
            last halves the resolution.
        layers_per_block: Number of residual blocks of each level.
        latent_channels: Number of channels of latents and of codebook entries.
        mid_layers: Number of residual blocks at the lowest resolution.
        attention_heads: Number of heads of the attentions between these.
        norm_num_groups: Number of groups of every norm.
        codebook_size: Number of entries of the codebook.
    """

    def __init__(
        self,
        channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        latent_channels: int,
        mid_layers: int,
        attention_heads: int,
        norm_num_groups: int,
        codebook_size: int,
    ) -> None:
        super().__init__()
        self.channels, self.latent_channels = channels, latent_channels
        self.downsampling = 2 ** (len(block_out_channels) - 1)
        shared = (layers_per_block, mid_layers, attention_heads, norm_num_groups)
        widths = list(block_out_channels)
        self.encoder = VQHalf(channels, latent_channels, widths, *shared, up=False)
        self.decoder = VQHalf(latent_channels, channels, widths[::-1], *shared, up=True)
        self.codebook = nn.Embedding(codebook_size, latent_channels)

    def encode(self, images: Tensor) -> Tensor:
        """Return latents (b d h w), not quantised, of images (b c H W) in [-1, 1]."""
        return self.encoder(images)

    def quantize(self, latents: Tensor) -> Tensor:
        """Return the nearest entries of the codebook, in the shape of the latents."""
        flat, codes = latents.movedim(1, -1), self.codebook.weight
        # |z|² is left out, because it is the same for all entries.
        numbers = (codes.square().sum(-1) - 2 * flat @ codes.T).argmin(-1)
        return codes[numbers].movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (b c H W), in about [-1, 1], of latents that it quantises."""
        return self.decoder(self.quantize(latents))

    def forward(self, images: Tensor) -> Tensor:
        """Return reconstructions in [-1, 1] of images in [-1, 1]."""
        return self.decode(self.encode(images)).clamp(-1, 1)
