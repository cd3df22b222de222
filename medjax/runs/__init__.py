"""A run's folder: its config and checkpoints, written, compared and read again."""
