"""Texts of the model cards of models without captions, and the code in them."""

import json

from medjax.diffusion.sampling_config import SamplingConfig

_FORMAT = (
    "Format: PyTorch. `model.safetensors` contains the weights, `config.json` the "
    "settings, and `modeling.py` the code."
)
WHAT = {
    "pixels_pipeline": (
        "A diffusion model that generates images like those in section "
        '"Data". It denoises pixels, without an autoencoder. Format: PyTorch diffusers.'
    ),
    "pytorch": (
        "A diffusion model that generates images like those in section "
        f'"Data". {_FORMAT}'
    ),
    "pytorch_autoencoder": (
        'A VQ-VAE, trained on the data in section "Data". It encodes images to '
        "latents, replaces the latents by entries of its codebook, and decodes the "
        f"entries to images. {_FORMAT}"
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
    "pixels_pipeline": """This code requires torch and diffusers.

```python
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

`sample` returns images in [-1, 1], and `to_pixels` converts them to bytes.{note}""",
    "pytorch_autoencoder": """{load}model = load(folder)
image = Image.open("image.png").convert("{mode}").resize(({size}, {size}))
latents = model.encode(from_pixels(np.asarray(image)[None]))
reconstructions = model.decode(latents)
Image.fromarray(to_pixels(reconstructions)[0]).save("reconstruction.png")
```

The code reads your image `image.png`. `encode` returns latents before quantisation, and
`decode` quantises latents before it decodes them.""",
}
_IMPORTS = {
    "pytorch": ("import torch\nfrom PIL import Image", "load, to_pixels"),
    "pytorch_autoencoder": (
        "import numpy as np\nfrom PIL import Image",
        "from_pixels, load, to_pixels",
    ),
}


def load_code(key: str, name: str, on_hub: bool) -> str:
    """Return the lines that import ``modeling.py``; "" for texts without them.

    Args:
        key: Key of the texts.
        name: Folder or hub id of the export.
        on_hub: Whether `name` is a hub id.
    """
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
    # JSON escapes quotation marks as Python does.
    label = json.dumps(classes[0], ensure_ascii=False) if classes else ""
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
        # Without the break, the line would be too long.
        "options": options.replace(", ", ",\n    ", 1 if len(options) > 34 else 0),
        "labels": f"labels=[{label}], " if classes else "",
    }


def sample_note(used: str, own: str, classes: tuple[str, ...], dropped: bool) -> str:
    """Return sentences about classes and sampler, to stand below the code.

    Args:
        used: Sampler of the code.
        own: Sampler of the run's own samples.
        classes: Names of the classes.
        dropped: Whether the model was also trained without classes.

    Returns:
        The text, which begins with an empty line; "" if nothing applies.
    """
    notes = []
    if classes:
        names = ", ".join(f"`{name}`" for name in classes)
        notes.append(f"Classes: {names}.")
        if dropped:
            notes.append("Without `labels`, the model chooses no particular class.")
    if used != own:
        notes.append(
            f"The training run sampled with {own}. This code has no {own} and uses "
            f"{used}, so its images differ from those of the run."
        )
    return "\n\n" + " ".join(notes) if notes else ""
