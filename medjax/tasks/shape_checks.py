"""Check that networks and images fit together, before anything is compiled.

A network of another model family loads without an error. Used with other networks, it
would fail later, or give wrong results without an error.
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
        where: Description of the model, for the error message.
        unet: U-Net of the model.
        vae: Autoencoder of the model.
        text_encoder: Text encoder of the model.
        tokens: Number of tokens of its tokenizer.

    Raises:
        UserError: If numbers of channels or of tokens differ between them.
    """
    if unet.in_channels != vae.latent_channels:
        raise UserError(
            f"{where}: the U-Net expects {unet.in_channels} channels, but the "
            f"autoencoder gives {vae.latent_channels}. Expected a text-to-image model "
            "(a model for inpainting expects 9)"
        )
    width = text_encoder.config.hidden_size
    if unet.cross_attention_dim != width:
        raise UserError(
            f"{where}: the U-Net expects texts of {unet.cross_attention_dim} channels, "
            f"but the text encoder gives {width}. Expected parts of the same model"
        )
    if tokens > text_encoder.config.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {tokens} tokens, but the text encoder has "
            f"{text_encoder.config.vocab_size}. Expected parts of the same model"
        )


def check_image_size(size: int, latents: int, halvings: int) -> None:
    """Check that the size of images is divisible by the factors of all networks.

    Args:
        size: Height and width of the images, in pixels.
        latents: Factor by which the autoencoder shrinks images; 1 without one.
        halvings: Factor by which the U-Net shrinks its input; 1 without one.

    Raises:
        UserError: If it is not. The message names the nearest valid sizes.
    """
    multiple = latents * halvings
    below = size // multiple * multiple
    if size != below or size == 0:
        sizes = [str(near) for near in (below, below + multiple) if near]
        parts = [f"the autoencoder shrinks images {latents}×"] if latents > 1 else []
        if halvings > 1:
            parts.append(
                f"the U-Net shrinks {'its input' if parts else 'images'} {halvings}×"
            )
        raise UserError(
            f"config.data.image_size={size}: expected a multiple of {multiple}, such "
            f"as {' or '.join(sizes)}, because {' and '.join(parts)}"
        )
