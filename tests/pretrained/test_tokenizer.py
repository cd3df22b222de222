"""The tokenizer: our words whole, everything else spelt, the same after every trip."""

import pickle

import numpy as np
import pytest

from medjax.data.captions import VOCABULARY, caption, vocabulary
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


@pytest.fixture(scope="module")
def small():
    """The tokenizer of a model that has never met a pneumothorax."""
    return tokenizer_from_words(vocabulary(("Cardiomegaly", "Effusion", "Nodule")))


UNHEARD = [
    "Pneumothorax",
    "left pneumothorax, AP view",
    "T-bone steak",
    "naïve café, ½ №5: “don't”",
    "Ünïcödé – ЖИЗНЬ – Ελλάδα",
    "🫁 lung\U0001f9b4",
]


def test_its_base_is_every_byte_alone_and_at_the_end_of_a_word(small):
    base = small.convert_ids_to_tokens(range(512))
    assert len(set(base)) == 512
    assert [token + "</w>" for token in base[:256]] == base[256:]


def test_a_word_it_was_not_given_is_spelt(small):
    whole = [word for word in VOCABULARY if len(ids(small, word)) == 3]
    assert set(whole) == set(vocabulary(("Cardiomegaly", "Effusion", "Nodule")))
    assert "pneumothorax" not in whole
    assert len(ids(small, "pneumothorax")) > 5


@pytest.mark.parametrize("text", UNHEARD)
def test_the_python_tokenizer_spells_it_alike(small, text, tmp_path):
    from transformers import CLIPTokenizer

    save_tokenizer(small, tmp_path)
    slow = CLIPTokenizer.from_pretrained(tmp_path)
    assert ids(slow, text) == ids(small, text)
    for tokenizer in (slow, small):
        spelt = tokenizer.decode(ids(tokenizer, text), skip_special_tokens=True)
        assert spelt.replace(" ", "") == text.lower().replace(" ", "")


def test_any_letters_can_be_spelt(small):
    random = np.random.default_rng(0)
    planes = [(0x21, 0x7F), (0xA1, 0x250), (0x400, 0x530), (0x3041, 0x9FFF)]
    for low, high in [*planes, (0x1F300, 0x1F900)]:
        text = " ".join(map(chr, random.integers(low, high, 40).tolist()))
        inner = ids(small, text)[1:-1]
        assert small.unk_token_id not in inner
        spelt = small.decode(inner).replace(" ", "")
        assert spelt == text.lower().replace(" ", "")


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
    with pytest.raises(UserError, match="contains no tokenizer"):
        load_tokenizer(tmp_path)
