"""A run's folder: write, compare and read its config and its checkpoints."""
