"""Data sets that `python -m medjax.prepare` supports. Each surveys a source folder."""
