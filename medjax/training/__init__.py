"""The training loop and its parts: optimiser, checkpoints, metrics, progress."""
