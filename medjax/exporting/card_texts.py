"""Texts of a model card; `medjax.exporting.model_card` fills in the values."""

CARD = """---
{metadata}
---

# {title}

{what}

This model is not a medical device. {warning}

## Use

{use}

The training images have {size} × {size} pixels.{captions}

## Data

{data}

## Base

{base}

## Training

The files contain {weights} after {step} steps with {batch_size} images each. The
training used medjax {version}. To repeat it, save this code as `config.py`:

```python
{config}
```

Then run this command. Replace names in capital letters by paths on your machine:

```sh
{command}
```

{metrics}
"""

PLACES = (
    "\n\nIn the code, replace each folder name by the folder's path on your machine."
)
CAPTIONS = " Write captions in the style of the training data."
WHAT = {
    "vae": (
        'A Stable Diffusion autoencoder, trained on the data in section "Data". It '
        "encodes images to latents and decodes latents to images. Format: PyTorch "
        "diffusers."
    ),
    "pipeline": (
        "A Stable Diffusion model, trained to generate images that follow a caption. "
        "Format: PyTorch diffusers."
    ),
    "lora": (
        'LoRA adapters for the Stable Diffusion model in section "Base", trained to '
        "generate images that follow a caption. Format: PyTorch diffusers."
    ),
    "kohya": (
        'LoRA adapters for the Stable Diffusion model in section "Base", trained to '
        "generate images that follow a caption. Format: one file for web UIs."
    ),
    "controlnet_pipeline": (
        "A Stable Diffusion model with a ControlNet, trained to generate images that "
        "follow a conditioning image and a caption. Format: PyTorch diffusers."
    ),
    "controlnet": (
        'A ControlNet for the Stable Diffusion model in section "Base", trained to '
        "generate images that follow a conditioning image and a caption. Format: "
        "PyTorch diffusers."
    ),
    "single_file": (
        'A ControlNet for the Stable Diffusion model in section "Base", trained to '
        "generate images that follow a conditioning image and a caption. Format: one "
        "file for web UIs, with the tensor names of the original ControlNet release."
    ),
}
GENERATES = """Its images are synthetic. They are not records of
patients, and physicians have not assessed them. However, the model may reproduce its
training data, including errors and images of patients."""
RECONSTRUCTS = """It changes the images that it encodes and decodes.
Details can be lost or appear, and physicians have not assessed the results."""
UNET_TOO = " The U-Net was also trained."
FROM_NOTHING = "This model has no base. It started from random weights."
FROM_SCRATCH = (
    "This model has no base. It started from random weights. Its autoencoder "
    "(fingerprint `{fingerprint}`) was trained first, on the same images."
)

_GENERATE = """edges = load_image("edges.png")
images = pipeline(
    "a caption", image=edges, num_inference_steps={steps}, guidance_scale={guidance}
).images
images[0].save("image.png")
```"""
PREDICTS = """from diffusers import DDIMScheduler

pipeline.scheduler = DDIMScheduler.from_config(
    pipeline.scheduler.config, prediction_type="{kind}", clip_sample=False
)
"""
OWN_AUTOENCODER = """from diffusers import AutoencoderKL

pipeline.vae = AutoencoderKL.from_pretrained("{vae}", torch_dtype=torch.{dtype})
"""
_LORA = """```python
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(
    "{base}", torch_dtype=torch.{dtype}
)
{changes}pipeline.load_lora_weights("{name}", weight_name="{file}")
images = pipeline(
    "a caption", num_inference_steps={steps}, guidance_scale={guidance},
    height={size}, width={size},
).images
images[0].save("image.png")
```"""
_CONTROLNET = """from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
)
from diffusers.utils import load_image

{load}
pipeline = StableDiffusionControlNetPipeline.from_pretrained(
    "{{base}}", controlnet=controlnet, torch_dtype=torch.{{dtype}}
)
"""
USE = {
    "vae": """```python
import torch
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained("{name}", torch_dtype=torch.{dtype})
```

To use it in a Stable Diffusion model, pass `vae=vae` to
`StableDiffusionPipeline.from_pretrained`. In medjax, set
`--config.model.vae={name}`.""",
    "pipeline": """```python
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(
    "{name}", torch_dtype=torch.{dtype}
)
images = pipeline(
    "a caption", num_inference_steps={steps}, guidance_scale={guidance},
    height={size}, width={size},
).images
images[0].save("image.png")
```""",
    "lora": """This code requires peft:

"""
    + _LORA,
    "kohya": """To use a web UI, put `{file}` into the web UI's folder
`models/Lora`. Select the Stable Diffusion model in section "Base", and add
`<lora:lora_{run}:1>` to the prompt.

To use diffusers, install peft and run this code:

"""
    + _LORA,
    "controlnet_pipeline": """```python
import torch
from diffusers import StableDiffusionControlNetPipeline
from diffusers.utils import load_image

pipeline = StableDiffusionControlNetPipeline.from_pretrained(
    "{name}", torch_dtype=torch.{dtype}
)
"""
    + _GENERATE,
    "controlnet": """```python
import torch
"""
    + _CONTROLNET.format(
        load="""controlnet = ControlNetModel.from_pretrained(
    "{name}", torch_dtype=torch.{dtype}
)"""
    )
    + _GENERATE,
    "single_file": """To use a web UI, put `{file}` into the web UI's folder
`models/ControlNet`. Select this ControlNet, the preprocessor "none", and the Stable
Diffusion model in section "Base".

To use diffusers, run this code:

```python
import torch
"""
    + _CONTROLNET.format(
        load="""controlnet = ControlNetModel.from_single_file(
    "{name}/{file}", torch_dtype=torch.{dtype}
)"""
    )
    + _GENERATE,
}

CONDITION = {
    "edges": "The conditioning image shows {edges}.",
    "stored": "The conditioning image is the field `conditioning_image` of the data.",
    "unknown": (
        "The conditioning image is the field `conditioning_image` of the data. If the "
        "data do not have this field, the conditioning image shows {edges}."
    ),
}

ADHERENCE = """

`val/edge_f1` measures how well the edges of generated images match the given edges. The
value 1 means a perfect match. `val/edge_f1_chance` is the same measure, but compares
with the edges of other images. If both values are equal, the generated images do not
follow the given edges."""

CONFIG = """
from medjax.runs.config import make_config


def get_config(variant=""):
    config = make_config("{task}")
{lines}
    return config
"""
