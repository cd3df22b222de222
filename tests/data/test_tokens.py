import pickle

import numpy as np
import pytest

from medjax.data.tokens import tokenize


def test_padding_is_the_tokenizers(tokenizer):
    ids, lost = tokenize(tokenizer, "a b")
    assert ids.shape == (77,)
    assert ids.dtype == np.int32
    assert lost == ""
    assert ids[0] == tokenizer.bos_token_id
    assert set(ids[3:]) == {tokenizer.pad_token_id} == {tokenizer.eos_token_id}


@pytest.mark.parametrize(("words", "fits"), [(75, True), (76, False), (90, False)])
def test_what_does_not_fit_is_returned(tokenizer, words, fits):
    text = " ".join("a" * min(words, 75)) + " z" * max(0, words - 75)
    ids, lost = tokenize(tokenizer, text)
    assert ids.shape == (77,)
    assert ids[-1] == tokenizer.eos_token_id
    assert (lost == "") == fits
    assert lost.split() == ["z"] * max(0, words - 75)


def test_ids_are_those_of_the_tokenizer_itself(tokenizer):
    for text in ("", "a b c", "Chest x-ray, view: PA", "a " * 90):
        theirs = tokenizer(text, padding="max_length", max_length=77, truncation=True)
        ids, _ = tokenize(pickle.loads(pickle.dumps(tokenizer)), text)
        assert ids.tolist() == theirs["input_ids"]


def test_real_clip_vocabulary(shared_data):
    from transformers import CLIPTokenizer

    clip = CLIPTokenizer.from_pretrained(shared_data / "clip_tokenizer")
    ids, _ = tokenize(clip, "a photo of a cat")
    assert ids[:8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
