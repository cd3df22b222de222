"""Trees of arrays named by path: flatten, split, merge, cast, fingerprint.

A path joins the keys of nested dicts with ``/``: ``unet/conv_in/kernel``.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.arrays import Params, PyTree

# Below this many bytes a leaf is hashed whole, above it at this many spread places.
_HASHED_PLACES = 4096


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"a/b/c": leaf}``, sorted by path."""
    flat: dict[str, Any] = {}

    def visit(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            for key in node:
                visit(node[key], (*path, str(key)))
        else:
            flat["/".join(path)] = node

    visit(tree, ())
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Invert `flatten`."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = leaf
    return tree


def split(
    tree: Mapping[str, Any], predicate: Callable[[str], bool]
) -> tuple[Params, Params]:
    """Return the leaves whose path satisfies `predicate`, and the others."""
    flat = flatten(tree)
    chosen = {path: leaf for path, leaf in flat.items() if predicate(path)}
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten(chosen), unflatten(rest)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> Params:
    """Join two trees that share no path.

    Raises:
        ValueError: If a path is in both.
    """
    a, b = flatten(first), flatten(second)
    if common := a.keys() & b.keys():
        raise ValueError(f"paths in both trees: {', '.join(sorted(common)[:5])}")
    return unflatten(a | b)


def count(tree: PyTree) -> int:
    """Return the number of scalars in all leaves (shapes are enough)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Return the tree with its floating-point leaves in `dtype`; others unchanged."""
    dtype = jnp.dtype(dtype)

    def cast_leaf(x: Any) -> Any:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        # What has the dtype is not copied, for it may be gigabytes.
        return x.astype(dtype) if floating and x.dtype != dtype else x

    return jax.tree.map(cast_leaf, tree)


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Return 16 hex digits that tell this tree's paths, shapes and values from others'.

    Of a large leaf only evenly spread values are read, so that a billion parameters
    take a second. Values count as float32, so storing a tree wider changes nothing.
    """
    digest = hashlib.sha256()
    for path, leaf in flatten(tree).items():
        flat = leaf.reshape(-1)
        step = max(1, flat.shape[0] // _HASHED_PLACES)
        values = np.asarray(flat[::step], dtype=np.float32)
        digest.update(f"{path}:{tuple(leaf.shape)};".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]
