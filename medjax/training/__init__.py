"""The training loop and its parts: optimiser, evaluators, metrics, progress."""
