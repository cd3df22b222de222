"""The tokenizer: our words whole, everything else spelt, the same after every trip."""

import pickle

import pytest

from medjax.data.captions import VOCABULARY, caption
from medjax.data.tokens import tokenize
from medjax.errors import UserError
from medjax.pretrained.tiny import tiny_tokenizer
from medjax.pretrained.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    tokenizer_from_words,
)

TEXTS = [
    caption(["Cardiomegaly", "Effusion"], "PA", 57, "F"),
    "Größe naïve 日本 Zyxt 100%",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def test_every_word_of_a_caption_is_one_token(tokenizer):
    assert {word: len(ids(tokenizer, word)) for word in VOCABULARY} == dict.fromkeys(
        VOCABULARY, 3
    )


def test_words_that_overlap_stay_whole():
    words = ["ab", "bc", "abc", "cab", "aab", "aaaa", "abcab", "bcabc"]
    tokenizer = tokenizer_from_words(words)
    assert [len(ids(tokenizer, word)) for word in words] == [3] * len(words)


@pytest.mark.parametrize("text", TEXTS)
def test_what_it_does_not_know_it_spells(tokenizer, text):
    assert tokenizer.unk_token_id not in ids(tokenizer, text)[1:-1]
    spelt = tokenizer.decode(ids(tokenizer, text), skip_special_tokens=True)
    assert spelt.replace(" ", "") == text.lower().replace(" ", "")


def test_special_tokens_are_clips(tokenizer):
    last = len(tokenizer) - 1
    assert ids(tokenizer, "") == [last - 1, last]
    assert tokenizer.pad_token_id == last
    assert tokenizer.model_max_length == 77
    padded, _ = tokenize(tokenizer, "chest")
    assert padded.tolist()[2:] == [last] * 75


@pytest.mark.parametrize("text", TEXTS)
def test_it_comes_back_from_a_folder_and_from_a_pickle(tokenizer, text, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    # The Python tokenizer of transformers 4 reads these two.
    assert (tmp_path / "vocab.json").is_file()
    assert (tmp_path / "merges.txt").is_file()
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert ids(other, text) == ids(tokenizer, text)
        assert other.pad_token_id == tokenizer.pad_token_id
        assert other.model_max_length == 77


def test_two_files_are_enough(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    for file in tmp_path.iterdir():
        if file.name not in ("vocab.json", "merges.txt"):
            file.unlink()
    assert ids(load_tokenizer(tmp_path), TEXTS[0]) == ids(tokenizer, TEXTS[0])


def test_clips_own_gives_the_published_ids(shared_data):
    clip = load_tokenizer(shared_data / "clip_tokenizer")
    assert ids(clip, "a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert clip.pad_token_id == 49407


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
