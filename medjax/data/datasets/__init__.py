"""Data sets that `medjax prepare` supports. Each surveys a source folder."""
