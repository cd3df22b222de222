"""Exports of what a run trained, in the formats of PyTorch and web UIs."""
