"""Exports: what a run trained, in the formats of PyTorch and web UIs, with a model card."""
