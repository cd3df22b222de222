"""Trees of arrays named by path: flatten, split, merge, cast, fingerprint.

A path joins the keys of nested dicts with ``/``: ``unet/conv_in/kernel``.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.arrays import Params, PyTree
from medjax.blank import blank, wants_blank

# Beginning of the fingerprints for which all values were read.
_OF_ALL = "full-"
# The older kind reads this many values of a large leaf, at most about twice as many.
_SPARSE_PLACES = 4096
# Number of values that are converted and hashed at a time.
_CHUNK = 2**20


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


def by_path(tree: PyTree) -> dict[str, Any]:
    """Return ``{"a/b/0/c": leaf}`` for any pytree, in the order of its leaves.

    Checkpoints are nested dicts with these paths, so they depend on no class.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


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
        # Not copied if the dtype is right, because a leaf may have gigabytes.
        if not floating or x.dtype == dtype:
            return x
        return blank(x.shape, dtype) if wants_blank() else x.astype(dtype)

    return jax.tree.map(cast_leaf, tree)


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Return a fingerprint of the paths, shapes and values of a tree.

    All values are read; SHA-256 takes about a second per GB and core. Values are
    converted to float32, so the fingerprint is the same in a wider dtype.
    """
    if wants_blank():
        return "blank"
    flat = flatten(tree)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_digest, flat.values()))
    digest = hashlib.sha256()
    for (path, leaf), own in zip(flat.items(), digests, strict=True):
        digest.update(f"{path}:{tuple(leaf.shape)};".encode())
        digest.update(own)
    return f"{_OF_ALL}{digest.hexdigest()[:16]}"


def sparse_fingerprint(tree: Mapping[str, Any]) -> str:
    """Return the older kind of fingerprint: 16 hex digits without a prefix.

    It reads only evenly spaced values of a large leaf, so it misses small changes.
    Earlier runs, exports and latents have it.
    """
    if wants_blank():
        return "blank"
    digest = hashlib.sha256()
    for path, leaf in flatten(tree).items():
        flat = leaf.reshape(-1)
        step = max(1, flat.shape[0] // _SPARSE_PLACES)
        values = np.asarray(flat[::step], dtype=np.float32)
        digest.update(f"{path}:{tuple(leaf.shape)};".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def fingerprint_like(stored: str, tree: Mapping[str, Any]) -> str:
    """Return the fingerprint of a tree, of the same kind as the stored one."""
    made = fingerprint if stored.startswith(_OF_ALL) else sparse_fingerprint
    return made(tree)


def identity(source: str, tree: Mapping[str, Any]) -> dict[str, str]:
    """Return the identity of weights: the source, and both kinds of fingerprint."""
    return {
        "source": source,
        "fingerprint": fingerprint(tree),
        "sparse_fingerprint": sparse_fingerprint(tree),
    }


def is_same(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Tell whether two identities belong to the same weights or the same data.

    Args:
        then: The stored identity. Its fingerprint may be of the older kind.
        now: The current identity.
    """
    known = (now["fingerprint"], now.get("sparse_fingerprint"))
    return then["fingerprint"] in known


def _digest(leaf: Any) -> bytes:
    """Return the SHA-256 of a leaf's values as float32, in chunks to save memory."""
    values = np.asarray(leaf).reshape(-1)
    digest = hashlib.sha256()
    for start in range(0, len(values), _CHUNK):
        chunk = np.ascontiguousarray(values[start : start + _CHUNK], np.float32)
        digest.update(chunk.data)
    return digest.digest()
