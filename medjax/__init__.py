"""Train, evaluate and export diffusion models of medical images in JAX."""

__version__ = "0.1.0"
