"""The diffusers layout: which folder and files hold which network, under what names."""

import dataclasses
from pathlib import Path
from typing import Any

from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.controlnet import ControlNet
from medjax.models.unet_2d_condition import UNet2DCondition

CONFIG = "config.json"
MODEL_INDEX = "model_index.json"
TOKENIZER = "tokenizer"
SCHEDULER = "scheduler"
SCHEDULER_CONFIG = "scheduler_config.json"
# Full precision first; of several precisions only one is downloaded and read.
VARIANTS = ("", ".fp16")


@dataclasses.dataclass(frozen=True)
class Part:
    """How one network is stored.

    Attributes:
        module: Our class for it.
        library: "diffusers" or "transformers".
        torch_class: Its class there.
        folder: Inside the folder of the whole; "" where the network is the whole.
        stem: Of the safetensors file.
        torch_file: Its name as torch saves it by itself.
        flax_file: Its name as Flax saves it.
    """

    module: type[Any]
    library: str
    torch_class: str
    folder: str
    stem: str = "diffusion_pytorch_model"
    torch_file: str = "diffusion_pytorch_model.bin"
    flax_file: str = "diffusion_flax_model.msgpack"

    def weights_in(self, home: Path) -> Path | None:
        """Return the network's safetensors file, or the index of its shards.

        Args:
            home: The folder that it lies in.
        """
        files = [home / name for v in VARIANTS for name in self._safetensors(v)[:2]]
        return next((file for file in files if file.is_file()), None)

    def patterns(self, variant: str) -> list[str]:
        """Return the hub's file patterns of the safetensors of this variant."""
        return [self.inside(name) for name in self._safetensors(variant)]

    def inside(self, name: str) -> str:
        """Return a file's path in the folder of the whole."""
        return f"{self.folder}/{name}" if self.folder else name

    def _safetensors(self, variant: str) -> list[str]:
        shards = "-*-of-*"
        return [
            f"{self.stem}{variant}.safetensors",
            f"{self.stem}.safetensors.index{variant}.json",
            f"{self.stem}{variant}{shards}.safetensors",
            f"{self.stem}{shards}{variant}.safetensors",
        ]


STABLE_DIFFUSION = {
    "unet": Part(UNet2DCondition, "diffusers", "UNet2DConditionModel", "unet"),
    "vae": Part(AutoencoderKL, "diffusers", "AutoencoderKL", "vae"),
    "text_encoder": Part(
        CLIPText,
        "transformers",
        "CLIPTextModel",
        "text_encoder",
        "model",
        "pytorch_model.bin",
        "flax_model.msgpack",
    ),
}
# The same in a folder of its own.
AUTOENCODER = {"vae": dataclasses.replace(STABLE_DIFFUSION["vae"], folder="")}
CONTROLNET = {"controlnet": Part(ControlNet, "diffusers", "ControlNetModel", "")}
# The same in the folder of a pipeline.
PIPELINE_CONTROLNET = dataclasses.replace(CONTROLNET["controlnet"], folder="controlnet")
