"""Whether networks and images fit together, asked before anything is compiled.

A network of another family loads without complaint, and fails, or is silently wrong,
where two of them meet.
"""

from medjax.errors import UserError
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.unet_2d_condition import UNet2DCondition


def check_base(
    where: str,
    unet: UNet2DCondition,
    vae: AutoencoderKL,
    text_encoder: CLIPText,
    tokens: int,
) -> None:
    """Check that the parts of a Stable Diffusion fit each other.

    Args:
        where: What they are parts of, for the error.
        unet: Network.
        vae: Network.
        text_encoder: Network.
        tokens: Number of tokens that its tokenizer has.

    Raises:
        UserError: If its U-Net takes other latents or texts than the others give.
    """
    if unet.in_channels != vae.latent_channels:
        raise UserError(
            f"{where}: its U-Net takes {unet.in_channels} channels, its autoencoder "
            f"makes {vae.latent_channels}; expected a text-to-image model (one for "
            "inpainting takes 9)"
        )
    width = text_encoder.config.hidden_size
    if unet.cross_attention_dim != width:
        raise UserError(
            f"{where}: its U-Net takes texts of {unet.cross_attention_dim} channels, "
            f"its text encoder makes {width}; expected parts of one model"
        )
    if tokens > text_encoder.config.vocab_size:
        raise UserError(
            f"{where}: its tokenizer has {tokens} tokens, its text encoder knows "
            f"{text_encoder.config.vocab_size}; expected parts of one model"
        )


def check_image_size(size: int, latents: int, halvings: int) -> None:
    """Check that the networks can halve images as often as they do.

    Args:
        size: Height and width of the images, in pixels.
        latents: How often the autoencoder shrinks them; 1 without one.
        halvings: How often the network shrinks what that gives.

    Raises:
        UserError: Names the nearest sizes that they can.
    """
    multiple = latents * halvings
    below = size // multiple * multiple
    if size != below or size == 0:
        sizes = [str(near) for near in (below, below + multiple) if near]
        parts = [f"the autoencoder shrinks images {latents}×"] if latents > 1 else []
        if halvings > 1:
            parts.append(f"the U-Net {halvings}×{' more' if parts else ''}")
        raise UserError(
            f"config.data.image_size is {size}, expected a multiple of {multiple}, as "
            f"{' or '.join(sizes)}: {', and '.join(parts)}"
        )
