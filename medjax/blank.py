"""Weights without values, for where only their shapes matter.

Inside ``with blank_weights():`` nothing is read, downloaded or drawn: every weight is
an array of zeros that takes no memory, whatever its shape.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from medjax.arrays import PyTree

_WANTED = contextvars.ContextVar("blank weights", default=False)


@contextlib.contextmanager
def blank_weights() -> Iterator[None]:
    """Make every weight that is loaded or drawn inside a blank one."""
    token = _WANTED.set(True)
    try:
        yield
    finally:
        _WANTED.reset(token)


def wants_blank() -> bool:
    """Return whether the caller is inside `blank_weights`."""
    return _WANTED.get()


def blank(shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "..."]:
    """Return zeros that take no memory; they cannot be written to."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def blank_tree(shapes: PyTree, dtype: Any) -> PyTree:
    """Return blank weights of these shapes."""
    return jax.tree.map(lambda leaf: blank(leaf.shape, dtype), shapes)
