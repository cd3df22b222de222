"""Networks as Flax Linen modules: diffusers' parameter names, torch's numbers."""
