"""Trees by path."""

import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees


def tree():
    return {
        "unet": {"conv": {"kernel": jnp.arange(6.0).reshape(2, 3)}},
        "b": np.ones(2),
    }


def test_flatten_and_split_come_back():
    assert list(trees.flatten(tree())) == ["b", "unet/conv/kernel"]
    chosen, rest = trees.split(tree(), lambda path: path.startswith("unet/"))
    assert list(chosen) == ["unet"]
    assert list(rest) == ["b"]
    joined = trees.merge(chosen, rest)
    for path, leaf in trees.flatten(tree()).items():
        np.testing.assert_array_equal(trees.flatten(joined)[path], leaf)


def test_merge_refuses_a_path_twice():
    with pytest.raises(ValueError, match="unet/conv/kernel"):
        trees.merge(tree(), {"unet": tree()["unet"]})


def test_fingerprint_tells_values_and_paths_but_not_storage():
    first = trees.fingerprint(tree())
    assert trees.fingerprint(tree()) == first
    assert trees.fingerprint(trees.cast(tree(), jnp.bfloat16)) == first
    changed = tree()
    changed["b"] = np.array([1.0, 1.001])
    assert trees.fingerprint(changed) != first
    assert (
        trees.fingerprint({"c" if k == "b" else k: v for k, v in tree().items()})
        != first
    )
    assert trees.count(tree()) == 8
