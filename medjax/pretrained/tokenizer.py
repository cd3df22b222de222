"""Load and save CLIP's tokenizer, with equal results in transformers 4.57 and 5.

transformers 4 has a Python tokenizer and a fast one. transformers 5 has only the fast
one. medjax uses the fast one in both, so that captions get the same ids.
"""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medjax import storage
from medjax.errors import UserError
from medjax.pretrained.sources import local_folder

TOKENIZER_ID = "openai/clip-vit-large-patch14"
"""Hub id of SD1.x's tokenizer; that of SD2.x has the same words."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
# CLIP appends this mark to the last piece of a word.
WORD_END = "</w>"
# One of these files is enough for a tokenizer.
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_FILES = ["*.json", "merges.txt"]


def find_tokenizer(source: str = TOKENIZER_ID) -> Any:
    """Return the `transformers` CLIP tokenizer of a folder, or of an id on the hub.

    Raises:
        UserError: If the tokenizer is missing and cannot be downloaded.
    """
    return load_tokenizer(local_folder(source, [_FILES], Path.is_dir))


def load_tokenizer(folder: Path) -> Any:
    """Return the `transformers` CLIP tokenizer of a folder.

    Raises:
        UserError: If the folder contains no tokenizer.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise UserError(
            f"{folder} contains no tokenizer. Expected vocab.json and merges.txt, or "
            "tokenizer.json"
        )
    # Without torch, transformers warns at its import. Tokenizers do not need torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer so that transformers 4 and 5 both load it."""
    storage.make_folder(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes only tokenizer.json. Torch pipelines with transformers 4 use
    # the Python tokenizer, which reads these files.
    if not (folder / "vocab.json").is_file():
        tokenizer.backend_tokenizer.model.save(str(folder))


def tokenizer_from_words(words: Iterable[str], max_length: int = 77) -> Any:
    """Return a CLIP tokenizer that has each of these words as one token.

    Every byte is also a token, so the tokenizer can spell unknown words. Begin and end
    are the last two ids, as in CLIP's own tokenizer. The end token is also the padding,
    as in SD1.5.

    Args:
        words: Words in lower case without spaces. As CLIP splits text, each must be
            letters only, one digit, or punctuation only.
        max_length: Maximum number of tokens of the text encoder.
    """
    letters = _byte_letters()
    merges: list[tuple[str, str]] = []
    for word in words:
        _add_word([letters[byte] for byte in word.encode()], merges)
    alphabet = sorted(letters.values(), key=ord)
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    tokens += [a + b for a, b in merges]
    tokens += [BEGIN, END]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    with storage.temporary_folder() as folder:
        vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
        storage.write_json(folder / "vocab.json", vocabulary)
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
        storage.write_text(folder / "merges.txt", "\n".join(lines) + "\n")
        storage.write_json(folder / "tokenizer_config.json", config)
        return load_tokenizer(folder)


def _byte_letters() -> dict[int, str]:
    """Return the printable letter that represents each byte.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners",
    2019, section 2.2. The choice of letters is GPT-2's convention, which CLIP shares.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _add_word(letters: list[str], merges: list[tuple[str, str]]) -> None:
    """Append the merges that are still missing to make a word one token.

    New merges come last, so that earlier words are split as before.
    """
    pieces = [*letters[:-1], letters[-1] + WORD_END]
    while pairs := set(itertools.pairwise(pieces)) & set(merges):
        pieces = _merged(pieces, min(pairs, key=merges.index))
    while len(pieces) > 1:
        merges.append((pieces[0], pieces[1]))
        pieces = _merged(pieces, merges[-1])


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Return the pieces with every occurrence of the pair joined, from the left."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
