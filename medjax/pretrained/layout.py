"""The diffusers layout: folders, files and class names of each network."""

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
# Full precision first; only one precision is downloaded and read.
VARIANTS = ("", ".fp16")


@dataclasses.dataclass(frozen=True)
class Part:
    """Description of how one network is stored.

    Attributes:
        module: Class of the network in medjax.
        library: "diffusers" or "transformers".
        torch_class: Class of the network in that library.
        folder: Folder inside that of the whole model; "" if it is stored alone.
        stem: Name of the safetensors file without its ending.
        torch_file: Name of the file that torch writes.
        flax_file: Name of the file that Flax writes.
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
            home: Folder of the network.
        """
        files = [home / name for v in VARIANTS for name in self._safetensors(v)[:2]]
        return next((file for file in files if file.is_file()), None)

    def patterns(self, variant: str) -> list[str]:
        """Return file patterns for the hub, of the safetensors of this variant."""
        return [self.inside(name) for name in self._safetensors(variant)]

    def inside(self, name: str) -> str:
        """Return a file's path in the folder of the whole model."""
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
# Networks stored alone in a folder.
AUTOENCODER = {"vae": dataclasses.replace(STABLE_DIFFUSION["vae"], folder="")}
CONTROLNET = {"controlnet": Part(ControlNet, "diffusers", "ControlNetModel", "")}
# The ControlNet in the folder of a pipeline.
PIPELINE_CONTROLNET = dataclasses.replace(CONTROLNET["controlnet"], folder="controlnet")
