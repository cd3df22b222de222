"""Texts of the model cards of models without captions, and the code in them."""

from medjax.diffusion.sampling_config import SamplingConfig

WHAT = {
    "pixels_pipeline": (
        "A diffusion model of pixels, trained to generate images like those in "
        'section "Data". Format: PyTorch diffusers.'
    ),
    "pytorch": (
        "A diffusion model, trained to generate images like those in section "
        '"Data". Format: weights, and one file of PyTorch, `modeling.py`.'
    ),
    "pytorch_autoencoder": (
        'A VQ-VAE, trained on the data in section "Data". It encodes images to '
        "latents, replaces them by entries of its codebook, and decodes these to "
        "images. Format: weights, and one file of PyTorch, `modeling.py`."
    ),
}
_LOAD = """This code requires torch, safetensors, numpy and Pillow{hub}.

```python
import sys

{imports}

{folder}
sys.path.insert(0, folder)
from modeling import {names}

"""
USE = {
    "pixels_pipeline": """```python
import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained(
    "{name}", torch_dtype=torch.{dtype}
)
images = pipeline(num_inference_steps={steps}{eta}).images
images[0].save("image.png")
```{note}""",
    "pytorch": """{load}model = load(folder)
generator = torch.Generator().manual_seed(0)
noise = model.noise(1, {size}, {size}, generator)
images = model.sample(noise, {labels}steps={steps}{options})
Image.fromarray(to_pixels(images)[0]).save("image.png")
```

Images are in [-1, 1]; `to_pixels` makes bytes of them.{note}""",
    "pytorch_autoencoder": """{load}model = load(folder)
image = Image.open("image.png").convert("{mode}").resize(({size}, {size}))
latents = model.encode(from_pixels(np.asarray(image)[None]))
reconstructions = model.decode(latents)
Image.fromarray(to_pixels(reconstructions)[0]).save("reconstruction.png")
```

`encode` returns latents that are not quantised, and `decode` quantises them.""",
}
_IMPORTS = {
    "pytorch": ("import torch\nfrom PIL import Image", "load, to_pixels"),
    "pytorch_autoencoder": (
        "import numpy as np\nfrom PIL import Image",
        "from_pixels, load, to_pixels",
    ),
}


def load_code(key: str, name: str, on_hub: bool) -> str:
    """Return the lines that import an export's code, for the texts of this key."""
    if key not in _IMPORTS:
        return ""
    imports, names = _IMPORTS[key]
    folder, hub = f'folder = "{name}"', ""
    if on_hub:
        folder, hub = f'folder = snapshot_download("{name}")', " and huggingface_hub"
        download = "from huggingface_hub import snapshot_download\n"
        imports = imports.replace("from PIL", download + "from PIL")
    return _LOAD.format(hub=hub, imports=imports, folder=folder, names=names)


def sample_code(
    sampling: SamplingConfig, classes: tuple[str, ...]
) -> dict[str, str | float]:
    """Return the parts of the code that depend on sampling and classes.

    Args:
        sampling: Settings of the code: DDIM, or DDPM.
        classes: Names of the classes.
    """
    eta = f", eta={sampling.eta:g}" if sampling.sampler == "ddim" else ""
    options = ""
    if sampling.sampler == "ddpm":
        options += ', sampler="ddpm"'
    if sampling.eta:
        options += eta
    if classes:
        options += f", guidance_scale={sampling.guidance_scale:g}"
    if sampling.sampler == "ddpm" or sampling.eta:
        options += ", generator=generator"
    return {
        "eta": eta,
        "options": options if len(options) < 35 else _wrapped(options),
        "labels": f'labels=["{classes[0]}"], ' if classes else "",
    }


def _wrapped(options: str) -> str:
    return options.replace(", ", ",\n    ", 1)


def sample_note(used: str, own: str, classes: tuple[str, ...], dropped: bool) -> str:
    """Return what a reader of the code must know.

    Args:
        used: Sampler of the code.
        own: Sampler of the run's own samples.
        classes: Names of the classes.
        dropped: Whether the model was also trained without classes.
    """
    notes = []
    if classes:
        names = ", ".join(f"`{name}`" for name in classes)
        notes.append(f"Classes: {names}.")
        if dropped:
            notes.append("Without `labels`, images have no particular class.")
    if used != own:
        notes.append(
            f"The run's own samples use {own}, which this code does not have, so their "
            "images differ."
        )
    return "\n\n" + " ".join(notes) if notes else ""
