"""Keep compiled programs on disk, so that the next process need not compile them."""

import os
from pathlib import Path

import jax

_CACHE_BYTES = 10 * 10**9


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, at most 10 GB.

    If JAX_COMPILATION_CACHE_DIR is set, jax uses that folder instead, without a limit.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", f"{caches}/medjax/compiled")
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
