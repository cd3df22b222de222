"""Define networks as Flax Linen modules, with diffusers' names and torch's numbers."""
