"""Map Flax tree paths to torch state-dict names, and back.

| Flax leaf                         | torch                                    |
|-----------------------------------|------------------------------------------|
| Dense kernel (in, out)            | weight (out, in)                         |
| Conv kernel (h, w, in, out)       | weight (out, in, h, w)                   |
| scale of a norm, embedding, bias  | weight, weight, bias; same shape         |
| ``blocks_0/attentions_1``         | ``blocks.0.attentions.1``                |
| the autoencoder's ``query``, …    | ``to_q``, …; ``query`` in old files      |
| ``text_model/…``                  | ``text_model.…``; ``…`` in new files     |

Reading walks the expected tree and looks up each torch name, so no weight can keep its
random initial value. Writing uses the inverse of the same map.

Source: names of diffusers' and transformers' torch and Flax classes.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Shaped

from medjax.errors import UserError

# The autoencoder's attention: Flax names (as in old torch files) and torch names.
_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
# Prefix of all names of a text encoder, except in files written by transformers 5.
_TEXT_PREFIX = "text_model"
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Names that end in a digit that is not an index.
_NOT_INDEXED = ("linear_1", "linear_2")
# Stored by old versions of transformers: the numbers 0, 1, 2, …, not a weight.
_IGNORED = "position_ids"
# Maximum number of weights of each kind that an error names.
_MOST_NAMED = 30


def torch_names(path: str) -> tuple[str, ...]:
    """Return the possible torch names of a weight; the first one is used to write.

    >>> torch_names("mid_block/attentions_0/query/kernel")
    ('mid_block.attentions.0.to_q.weight', 'mid_block.attentions.0.query.weight')
    """
    *parents, leaf = path.split("/")
    parents, leaf = [_indexed(name) for name in parents], _LEAVES[leaf]
    plain = ".".join([*parents, leaf])
    if _in_attention(path):
        return (".".join([*parents[:-1], _ATTENTION[parents[-1]], leaf]), plain)
    if parents[0] == _TEXT_PREFIX:
        return (plain, ".".join([*parents[1:], leaf]))
    return (plain,)


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the torch shape of a leaf with this Flax shape."""
    return tuple(shape[axis] for axis in _torch_axes(path, len(shape)))


def to_torch(path: str, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Return a view of the leaf in torch's layout, without a copy."""
    return array.transpose(_torch_axes(path, array.ndim))


def from_torch(
    path: str, shape: tuple[int, ...], array: Shaped[np.ndarray, "..."]
) -> Shaped[np.ndarray, "..."]:
    """Return a view of torch's weight in the layout of a leaf of Flax shape `shape`."""
    array = array.reshape(torch_shape(path, shape))
    return array.transpose(np.argsort(_torch_axes(path, array.ndim)))


def match(
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...]],
    where: str,
    naming: Callable[[str], tuple[str, ...]] = torch_names,
) -> dict[str, str]:
    """Find each expected leaf's weight among the stored ones; allow no others.

    Args:
        expected: Flax shape of each path.
        stored: Torch shape of each name.
        where: Name and location of the weights, for error messages.
        naming: Function from a path to its possible names; errors report the first.

    Returns:
        The stored name of each path.

    Raises:
        UserError: If weights are missing, unexpected or of a wrong shape. The message
            names them, up to 30 of each kind.
    """
    found, missing, misfits = {}, [], []
    for path, shape in expected.items():
        names = naming(path)
        name = next((name for name in names if name in stored), None)
        if name is None:
            missing.append(names[0])
            continue
        found[path] = name
        wanted = torch_shape(path, shape)
        if not _fits(path, wanted, stored[name]):
            misfits.append(f"{name} {stored[name]} instead of {wanted}")
    used = set(found.values())
    unexpected = [
        name
        for name in stored
        if name not in used and name.rpartition(".")[2] != _IGNORED
    ]
    _check(where, missing, unexpected, misfits)
    return found


def check_tree(
    expected: Mapping[str, tuple[int, ...]],
    got: Mapping[str, tuple[int, ...]],
    where: str,
) -> None:
    """Compare two Flax trees, given as the shape of each path.

    Raises:
        UserError: If weights are missing, unexpected or of a wrong shape. The message
            names them, up to 30 of each kind.
    """
    _check(
        where,
        [path for path in expected if path not in got],
        [path for path in got if path not in expected],
        [
            f"{path} {got[path]} instead of {shape}"
            for path, shape in expected.items()
            if got.get(path, shape) != shape
        ],
    )


def _check(
    where: str, missing: list[str], unexpected: list[str], misfits: list[str]
) -> None:
    kinds = {"missing": missing, "unexpected": unexpected, "of a wrong shape": misfits}
    found = [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    if found:
        raise UserError(
            f"{where}: weights do not fit the configuration; {'; '.join(found)}"
        )


def _indexed(name: str) -> str:
    """Return ``blocks.0`` for ``blocks_0``."""
    return name if name in _NOT_INDEXED else re.sub(r"_(\d+)$", r".\1", name)


def _in_attention(path: str) -> bool:
    return path.split("/")[-2] in _ATTENTION


def _torch_axes(path: str, ndim: int) -> tuple[int, ...]:
    if path.endswith("/kernel"):
        return (3, 2, 0, 1) if ndim == 4 else (1, 0)
    return tuple(range(ndim))


def _fits(path: str, wanted: tuple[int, ...], got: tuple[int, ...]) -> bool:
    # Old autoencoders store the dense layers of their attention as 1×1 convolutions.
    as_conv = _in_attention(path) and path.endswith("/kernel")
    return got == wanted or (as_conv and got == (*wanted, 1, 1))


def _listed(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMED
    shown = ", ".join(names[:_MOST_NAMED])
    return f"{shown} and {rest} more" if rest > 0 else shown
