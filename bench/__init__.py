"""Measure time and memory of medjax. `bench/README.md` lists the commands."""
