"""Train, evaluate and export diffusion models of medical images in JAX.

The functions and classes that a notebook needs have their names here. Each is imported
when it is first used, so that ``import medjax`` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medjax.diffusion.sampling_config import SamplingConfig
    from medjax.pretrained import (
        StableDiffusion,
        load_autoencoder,
        load_controlnet,
        load_stable_diffusion,
        save_autoencoder,
        save_controlnet,
        save_stable_diffusion,
    )
    from medjax.runs.open_run import Run, load_run
    from medjax.sampling.generate import generate
    from medjax.tasks.drawing import Request

__version__ = "0.1.0"

__all__ = [
    "Request",
    "Run",
    "SamplingConfig",
    "StableDiffusion",
    "__version__",
    "generate",
    "load_autoencoder",
    "load_controlnet",
    "load_run",
    "load_stable_diffusion",
    "save_autoencoder",
    "save_controlnet",
    "save_stable_diffusion",
]

_HOMES = {
    "Request": "medjax.tasks.drawing",
    "Run": "medjax.runs.open_run",
    "SamplingConfig": "medjax.diffusion.sampling_config",
    "generate": "medjax.sampling.generate",
    "load_run": "medjax.runs.open_run",
}


def __getattr__(name: str) -> Any:
    """Import and return a public name; raise AttributeError for any other name."""
    if name not in __all__:
        raise AttributeError(f"module 'medjax' has no attribute '{name}'")
    home = importlib.import_module(_HOMES.get(name, "medjax.pretrained"))
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    """Return all public names, imported or not."""
    return sorted({*globals(), *__all__})
