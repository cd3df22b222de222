"""Sources that `python -m medjax.prepare` knows: each looks over a folder."""
