"""The texts of a model card; `medjax.exporting.model_card` fills them in."""

CARD = """---
{metadata}
---

# {title}

{what}

Not a medical device. No image that it makes shows a patient, and no physician has
judged any. It may repeat what it was trained on, errors and patients included.

## Use

{use}

It was trained on images of {size} × {size} pixels.{captions}

## Data

{data}

## Base

{base}

## Training

{weights} after {step} updates with {batch_size} images each, by medjax {version}. With
this as `config.py`

```python
{config}
```

the command is

```sh
{command}
```

{metrics}
"""

PLACES = "\n\nA folder in the code stands for its path on your machine."
CAPTIONS = " Captions are worded as those of the data."
WHAT = {
    "vae": (
        "The autoencoder of a Stable Diffusion, fitted to its images: it makes latents "
        "of them, and images of latents. For PyTorch diffusers."
    ),
    "pipeline": (
        "A Stable Diffusion, which is to make images that follow a caption. For "
        "PyTorch diffusers."
    ),
    "lora": (
        "Adapters (LoRA): with the Stable Diffusion below, they are to make images "
        "that follow a caption. For PyTorch diffusers."
    ),
    "kohya": (
        "Adapters (LoRA) in one file: with the Stable Diffusion below, they are to "
        "make images that follow a caption. For web UIs."
    ),
    "controlnet_pipeline": (
        "A Stable Diffusion with a ControlNet, which is to make images that follow a "
        "picture and a caption. For PyTorch diffusers."
    ),
    "controlnet": (
        "A ControlNet: with the Stable Diffusion below, it is to make images that "
        "follow a picture and a caption. For PyTorch diffusers."
    ),
    "single_file": (
        "A ControlNet in one file, with the names of the original release: with the "
        "Stable Diffusion below, it is to make images that follow a picture and a "
        "caption. For web UIs."
    ),
}
UNET_TOO = " Its U-Net was trained too."
FROM_NOTHING = "None: it was trained from nothing."
FROM_SCRATCH = (
    "None: it was trained from nothing, after its autoencoder, which was trained on "
    "the same images and is known by the fingerprint `{fingerprint}`."
)

_GENERATE = """edges = load_image("edges.png")
images = pipeline(
    "a caption", image=edges, num_inference_steps=20, guidance_scale={guidance}
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
    "a caption", num_inference_steps=20, guidance_scale={guidance},
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

In the place of a Stable Diffusion's own, `vae=vae` gives it to
`StableDiffusionPipeline.from_pretrained`, and `--config.model.vae={name}` gives it to
medjax.""",
    "pipeline": """```python
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(
    "{name}", torch_dtype=torch.{dtype}
)
images = pipeline(
    "a caption", num_inference_steps=20, guidance_scale={guidance},
    height={size}, width={size},
).images
images[0].save("image.png")
```""",
    "lora": """With peft installed:

"""
    + _LORA,
    "kohya": """In a web UI, put `{file}` where its LoRAs are (`models/Lora`), choose
the Stable Diffusion below, and add `<lora:lora_{run}:1>` to the prompt. In diffusers,
with peft installed:

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
    "single_file": """In a web UI, put `{file}` where its ControlNets are
(`models/ControlNet`), and choose it, no preprocessor, and the Stable Diffusion below.
In diffusers:

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
    "edges": "The picture that steers is {edges}.",
    "stored": "The picture that steers is the data's own `conditioning_image`.",
    "unknown": (
        "The picture that steers is the data's own `conditioning_image`, or, where "
        "they have none, {edges}."
    ),
}

ADHERENCE = """

`val/edge_f1` is how well the edges of generated images match those that they were
given, 1 being perfectly; `val/edge_f1_chance` the same against other images' edges.
Where the two are equal, the edges are not followed."""

CONFIG = """
from medjax.runs.config import make_config


def get_config(variant=""):
    config = make_config("{task}")
{lines}
    return config
"""
