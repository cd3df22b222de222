"""Networks as Flax Linen modules, with diffusers' parameter names and torch's numbers."""
