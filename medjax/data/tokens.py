"""Convert captions to 77 CLIP token ids, and return all words that do not fit."""

from typing import Any

import numpy as np
from jaxtyping import Int32

MAX_TOKENS = 77
"""Number of tokens that CLIP's text encoder accepts: begin, 75 tokens of text, end."""


def tokenize(
    tokenizer: Any, text: str, max_length: int = MAX_TOKENS
) -> tuple[Int32[np.ndarray, " l"], str]:
    """Tokenise one caption and pad it with the tokenizer's padding (SD1.5's: its eos).

    The tokenizer's own truncation and padding are not used. They do not return the text
    that was cut. On fast tokenizers they set a state that threads must not share.

    Args:
        tokenizer: A `transformers` CLIP tokenizer.
        text: The caption. "" is the unconditional caption.
        max_length: Number of ids, begin and end included.

    Returns:
        The ids, and the text that did not fit ("" if all did).
    """
    ids = tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"]
    lost = ""
    if len(ids) > max_length:
        # The end token stays, because the text encoder pools there.
        # A tokenizer that was pickled leaves its marks of word ends in the text.
        lost = tokenizer.decode(ids[max_length - 1 : -1]).replace("</w>", " ").strip()
        ids = [*ids[: max_length - 1], ids[-1]]
    padding = [tokenizer.pad_token_id] * (max_length - len(ids))
    return np.asarray([*ids, *padding], np.int32), lost
