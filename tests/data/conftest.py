"""A small CLIP tokenizer, made on the spot."""

import json

import pytest


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A CLIP tokenizer that knows letters and words of one letter."""
    from transformers import CLIPTokenizer
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    folder = tmp_path_factory.mktemp("tokenizer")
    letters = list(bytes_to_unicode().values())
    words = [letter + "</w>" for letter in letters]
    tokens = [*letters, *words, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
