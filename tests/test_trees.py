"""Trees of arrays named by path."""

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


def large():
    return {"text_encoder": {"tokens": np.arange(20_000, dtype=np.float32)}}


def test_one_value_of_a_large_array_changes_the_fingerprint():
    changed = large()
    changed["text_encoder"]["tokens"][7] += 0.5
    # The former kind reads only every fourth of these values.
    assert trees.sparse_fingerprint(changed) == trees.sparse_fingerprint(large())
    assert trees.fingerprint(changed) != trees.fingerprint(large())
    assert not trees.is_same(trees.identity("a", large()), trees.identity("a", changed))


def test_a_fingerprint_is_the_same_in_whatever_chunks_it_is_read(monkeypatch):
    whole = trees.fingerprint(large())
    monkeypatch.setattr(trees, "_CHUNK", 777)
    assert trees.fingerprint(large()) == whole
    wider = trees.cast(large(), np.float64)
    assert trees.fingerprint(wider) == whole


def test_what_was_stored_with_the_former_kind_is_compared_by_it():
    now = trees.identity("here", large())
    former = {"source": "there", "fingerprint": now["sparse_fingerprint"]}
    assert now["fingerprint"].startswith("full-")
    assert trees.is_same(former, now)
    assert (
        trees.fingerprint_like(former["fingerprint"], large())
        == (former["fingerprint"])
    )
    assert trees.fingerprint_like(now["fingerprint"], large()) == now["fingerprint"]
    other = trees.identity("here", {"text_encoder": {"tokens": np.ones(20_000)}})
    assert not trees.is_same(former, other)
    # The value must never change, because runs on disk have it.
    assert trees.sparse_fingerprint({"a": {"b": np.arange(3.0)}}) == "06589af36b476598"
