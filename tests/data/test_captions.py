import csv
import itertools

import pytest

from medjax.data.captions import (
    FINDING_NAMES,
    NO_FINDING,
    VOCABULARY,
    caption,
    labels_of,
    vocabulary,
    words,
)
from medjax.data.tokens import tokenize
from medjax.errors import UserError


def test_a_caption_reads_as_a_sentence_would():
    assert (
        caption(("Effusion", "Cardiomegaly"), "PA", 57, "F", sides={"Effusion": "left"})
        == "Chest X-ray with cardiomegaly and left pleural effusion, PA view, "
        "57-year-old woman"
    )
    assert (
        caption((NO_FINDING,), "AP", 31, "M")
        == "Chest X-ray without abnormal findings, AP view, 31-year-old man"
    )
    assert (
        caption(("Mass", "Nodule", "Edema"), "", None, "")
        == "Chest X-ray with pulmonary edema, lung mass and lung nodule"
    )


def test_findings_come_before_everything_that_a_cut_may_lose():
    for label, name in FINDING_NAMES.items():
        text = caption((label,), "PA", 40, "M")
        assert text.startswith(f"Chest X-ray with {name}, ")


@pytest.mark.parametrize(
    ("age", "sex", "person"),
    [
        (57, "", "57-year-old patient"),
        (17, "F", "17-year-old girl"),
        (18, "F", "18-year-old woman"),
        (0, "M", "infant boy"),
        (None, "F", "female patient"),
    ],
)
def test_the_person_is_named_as_far_as_known(age, sex, person):
    assert caption((), "PA", age, sex).split(", ")[-1] == person


def test_the_binary_prompts_are_the_published_ones():
    ill = caption(("Mass",), "PA", 40, "M", style="binary")
    assert ill == "Chest x-ray of a patient with diseases"
    for labels in ((), (NO_FINDING,)):
        healthy = caption(labels, "PA", 40, "M", style="binary")
        assert healthy == "Chest x-ray of a patient with no diseases"


def test_all_of_the_nih_findings_are_covered(shared_data):
    with open(shared_data / "nih_cxr" / "Data_Entry_2017_v2020.csv") as table:
        rows = csv.DictReader(table)
        published = {name for row in rows for name in row["Finding Labels"].split("|")}
    assert {*FINDING_NAMES, NO_FINDING} == published


def test_the_order_and_the_repetition_of_labels_do_not_matter():
    texts = {
        caption(labels, "PA", 40, "M")
        for labels in itertools.permutations(("Mass", "Effusion", "Hernia"))
    }
    assert len(texts) == 1
    assert caption(("Mass", "Mass"), "PA", 40, "M") == caption(("Mass",), "PA", 40, "M")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("Effusions",), "PA", 40, "M"), "did you mean 'Effusion'"),
        (((), "pa", 40, "M"), "unknown view 'pa'; expected one of PA, AP"),
        (((), "PA", 40, "X"), "unknown sex 'X'; expected one of F, M"),
        (((), "PA", -1, "M"), "age -1"),
        ((("Mass", NO_FINDING), "PA", 40, "M"), "excludes other findings"),
        ((("Mass",), "PA", 4, "M", "findings", {"Mass": "top"}), "side of Mass 'top'"),
    ],
)
def test_what_cannot_be_said_is_told_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        caption(*arguments)
    assert "\n" not in str(error.value)


SOME = ("Cardiomegaly", "Effusion", "Nodule", "Pneumothorax")


def test_labels_and_sides_can_be_read_from_a_caption():
    people = itertools.product(("", "PA", "AP"), (None, 0, 9, 83), ("", "F", "M"))
    ways = list(itertools.product((None, "", "left", "right"), repeat=len(SOME)))
    for view, age, sex in people:
        for way in ways:
            found = dict(zip(SOME, way, strict=True))
            labels = tuple(name for name in SOME if found[name] is not None)
            sides = {name: side for name, side in found.items() if side}
            text = caption(labels, view, age, sex, sides=sides)
            assert labels_of(text) == (labels, sides)


def test_sets_of_nih_findings_can_be_read_from_a_caption():
    for count in (0, 1, 2, 3, len(FINDING_NAMES)):
        for labels in itertools.combinations(FINDING_NAMES, count):
            assert labels_of(caption(labels, "PA", 57, "F")) == (labels, {})
    assert labels_of(caption((NO_FINDING,), "AP", 31, "M")) == ((), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the findings of ''; expected a caption such as 'Chest X-ray"),
        (caption(("Mass",), "PA", 40, "M", "binary"), "cannot read the findings"),
        ("Chest X-ray", "cannot read"),
        ("Chest X-ray with cardiomegaly, PA view, extra words", "unknown finding 'PA "),
        ("Chest X-ray with pnuemonia, PA view", "did you mean 'pneumonia'"),
        ("Chest X-ray with left , PA view", "unknown finding ''"),
    ],
)
def test_what_is_no_caption_has_no_labels(text, message):
    with pytest.raises(UserError, match=message) as error:
        labels_of(text)
    assert "\n" not in str(error.value)


def test_a_vocabulary_has_the_words_of_its_findings_only():
    small = vocabulary(("Effusion", "Nodule"))
    assert {"pleural", "effusion", "lung", "nodule", "and", "with"} <= set(small)
    assert set(VOCABULARY) - set(small) >= {"pneumothorax", "cardiomegaly", "mass"}
    with pytest.raises(UserError, match="did you mean 'Nodule'"):
        vocabulary(("Nodules",))


def test_the_vocabulary_has_every_word_of_every_caption():
    assert list(VOCABULARY) == sorted(set(VOCABULARY))
    assert all(word == word.lower() for word in VOCABULARY)
    used = set()
    for label, view, age, sex in itertools.product(
        [*FINDING_NAMES, NO_FINDING], ("", "PA", "AP"), (None, 0, 9, 83), ("", "F", "M")
    ):
        for side in ("left", "right"):
            text = caption((label,), view, age, sex, sides={label: side})
            used.update(words(text), words(caption((label,), view, age, sex)))
        used.update(words(caption((label,), view, age, sex, "binary")))
    assert used <= set(VOCABULARY)


def test_even_all_findings_fit_into_clip_s_77_tokens(shared_data):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(shared_data / "clip_tokenizer")
    text = caption(tuple(FINDING_NAMES), "PA", 57, "F")
    assert tokenize(tokenizer, text)[1] == ""
    # And it splits a caption where `words` does, if more finely.
    pieces = [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"][1:-1]]
    assert "".join(pieces) == "".join(words(text))
