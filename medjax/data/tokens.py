"""Captions to CLIP token ids, 77 of them, without ever losing words silently."""

from typing import Any

import numpy as np
from jaxtyping import Int32

MAX_TOKENS = 77
"""What CLIP's text encoder takes: begin, 75 tokens of text, end."""


def tokenize(
    tokenizer: Any, text: str, max_length: int = MAX_TOKENS
) -> tuple[Int32[np.ndarray, " l"], str]:
    """Tokenise one caption and pad it as the tokenizer says (SD1.5's: by its eos).

    The tokenizer's own truncation and padding stay unused: on fast tokenizers they set
    a state that threads must not share, and they do not tell what was cut.

    Args:
        tokenizer: A `transformers` CLIP tokenizer.
        text: The caption; "" is the unconditional one.
        max_length: Number of ids, begin and end included.

    Returns:
        The ids, and the text that did not fit ("" when all did).
    """
    ids = tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"]
    lost = ""
    if len(ids) > max_length:
        # The end token stays, as the text encoder pools there.
        # A tokenizer that was pickled leaves the marks of word ends in the text.
        lost = tokenizer.decode(ids[max_length - 1 : -1]).replace("</w>", " ").strip()
        ids = [*ids[: max_length - 1], ids[-1]]
    padding = [tokenizer.pad_token_id] * (max_length - len(ids))
    return np.asarray([*ids, *padding], np.int32), lost
