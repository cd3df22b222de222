"""Export the model of a run in the formats of PyTorch and web UIs."""
