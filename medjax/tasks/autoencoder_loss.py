"""Loss of autoencoders, and pages of their reconstructions.

    L = d(x, D(z)) + Σ_i w_i L_i                                                 (1)

where the L_i are losses of the latents, which depend on the kind of autoencoder; see
`vq_vae` and `autoencoder_kl`. Losses are means over the pixels, or the latents, of each
example.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float, Key

from medjax import trees
from medjax.arrays import Array, Batch, Params
from medjax.diffusion.objective import LossKind, errors
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.evaluation.similarity import likeness
from medjax.meshes import gather_params
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.vq_vae import VQVAE
from medjax.tasks.eval_config import EvalConfig
from medjax.tasks.interface import Outcome, SamplePage
from medjax.tasks.latent_scaling import decode, encode_mean, with_channels
from medjax.tasks.shape_checks import check_image_size

Coded = tuple[Array, dict[str, Array], Params]
"""Decoded images, the L_i of each example by name, and values for `Task.follow`."""
Followed = tuple[Params, dict[str, Float[Array, ""]]]


def follow_nothing(
    statistics: Params, observed: Params, key: Key[Array, ""]
) -> Followed:
    """Return the statistics unchanged; see `Task.follow`."""
    del observed, key
    return statistics, {}


@dataclasses.dataclass(frozen=True, eq=False)
class AutoencoderTask:
    """Loss and reconstructions (eq. 1). See `medjax.tasks.Task`.

    Attributes:
        module: Network of the autoencoder.
        channels: Number of channels of the images.
        loss_kind: Distance d.
        weights: Weights w_i by name of the loss.
        code: Function from all weights, images and one key per image to `Coded`.
        follow: Function that updates the statistics; see `medjax.tasks.Task`.
    """

    module: VQVAE | AutoencoderKL
    channels: int
    loss_kind: LossKind
    weights: Mapping[str, float]
    code: Callable[[Params, Array, Array], Coded]
    follow: Callable[[Params, Params, Array], Followed] = follow_nothing

    def check(self, size: int, sampling: SamplingConfig | None) -> None:
        """Raise UserError if the network cannot halve images of this size."""
        del sampling
        check_image_size(size, self.module.downsampling, 1)

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        train: bool,
    ) -> Outcome:
        """Return each example's loss (eq. 1) and its parts."""
        del train
        nets = gather_params(trees.merge(params, frozen))
        images = with_channels(batch["images"], self.channels)
        decoded, parts, observed = self.code(nets, images, keys)
        mask = batch.get("loss_mask")
        reconstruction = errors(decoded, images, self.loss_kind, mask)
        losses = reconstruction
        for name, weight in self.weights.items():
            losses = losses + weight * parts[name]
        return Outcome(losses, {"reconstruction": reconstruction, **parts}, observed)

    def sample(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        sampling: SamplingConfig | None,
    ) -> dict[str, Float[Array, "b H W c"]]:
        """Return images and their reconstructions."""
        del keys, sampling
        weights = autoencoder_weights(gather_params(trees.merge(params, frozen)))
        images = with_channels(batch["images"], self.channels)
        latents = encode_mean(self.module, weights, images)
        return {
            "original": images,
            "reconstruction": decode(self.module, weights, latents),
        }


def autoencoder_weights(weights: Params) -> Params:
    """Return the weights of a run in the form that `latent_scaling` uses."""
    if "codebook" not in weights:
        return {"network": weights["network"]}
    codes = weights["codebook"]["codes"]
    return {"network": weights["network"], "codebook": codes}


def measure_reconstruction(
    page: SamplePage, data: Any, config: EvalConfig
) -> dict[str, float]:
    """Return the mean PSNR in dB and SSIM of reconstructions, without padding."""
    del data, config
    pair = page.columns["original"], page.columns["reconstruction"]
    measured = likeness(*pair, page.batch.get("loss_mask"))
    return {name: float(measured[name].mean()) for name in ("psnr_db", "ssim")}
