"""A small CLIP tokenizer, made on the spot."""

import json

import pytest


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A CLIP tokenizer that knows letters and words of one letter."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    letters = sorted(ByteLevel.alphabet())
    words = [letter + "</w>" for letter in letters]
    tokens = [*letters, *words, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder)
