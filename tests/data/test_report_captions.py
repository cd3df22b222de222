"""Captions of reports are whole sentences from the front, and always fit."""

import numpy as np
import pytest

from medjax.data.report_captions import published_caption, report_caption, sentences

IMPRESSION = "1. Right upper lobe opacity. 2. Stable cardiomegaly. ."
FINDINGS = "Heart size is enlarged. The lungs are clear.No effusion"


def at_most(count):
    return lambda text: len(text.split()) <= count


def test_the_impression_comes_first_and_the_view_last():
    text, lost = report_caption(IMPRESSION, FINDINGS, "frontal", at_most(99))
    assert text == (
        "Chest X-ray. Right upper lobe opacity. Stable cardiomegaly. Heart size is "
        "enlarged. The lungs are clear. No effusion. Frontal view."
    )
    assert set(lost.values()) == {0}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("", []),
        ("XXXX. .", []),
        ("Dr. XXXX was told. Nodule of 1.9 x 1.8 cm.", 2),
        ("Normal chest x-XXXX .", ["Normal chest x-XXXX."]),
        ("1.Lucency in the lung", ["Lucency in the lung."]),
        ("1) Clear. 2) Clear.", ["Clear."]),
        ("Is it edema? Or not!", ["Is it edema?", "Or not!"]),
    ],
)
def test_sentences_end_where_they_end(section, expected):
    found = sentences(section)
    assert (len(found) if isinstance(expected, int) else found) == expected


def test_what_both_sections_say_is_said_once():
    text, lost = report_caption(
        "Lungs are CLEAR", "Lungs are clear. X.", "", at_most(9)
    )
    assert text == "Chest X-ray. Lungs are CLEAR. X."
    assert lost["sentences_left_off"] == 0


@pytest.mark.parametrize("view", ["", "PA", "lateral"])
def test_at_every_length_a_caption_is_a_front_part_that_fits(view):
    rng = np.random.default_rng(0)
    words = ["lung", "heart", "clear", "opacity", "pleural"]
    told = [" ".join(rng.choice(words, n)) + f" {n}." for n in (4, 9, 2, 30, 5)]
    whole = sentences(*told)
    for most in range(5, 70):
        fits = at_most(most)
        text, lost = report_caption(" ".join(told[:2]), " ".join(told[2:]), view, fits)
        assert fits(text)
        assert text.startswith("Chest X-ray.")
        ending = f" {view[:1].upper()}{view[1:]} view." if view else ""
        assert text.endswith(ending)
        body = text.removeprefix("Chest X-ray.").removesuffix(ending).strip()
        kept = len(whole) - lost["sentences_left_off"]
        if lost["captions_cut_in_a_sentence"]:
            assert kept == 1
            assert set(body.split()) <= set(whole[0].split())
            assert len(text.split()) == most
        else:
            assert body == " ".join(whole[:kept])
        if kept < len(whole):
            assert lost["captions_shortened"] == 1
            longer = " ".join(whole[: kept + 1])
            assert not fits(f"Chest X-ray. {longer}{ending}")


def test_no_room_at_all_still_gives_a_caption():
    text, lost = report_caption(IMPRESSION, "", "PA", lambda text: False)
    assert text == "Chest X-ray. PA view."
    assert lost["captions_cut_in_a_sentence"] == 1


def test_the_published_prompt_cuts_the_report_and_puts_the_impression_last():
    text, lost = published_caption("Mass.", "Clear. " * 40, at_most(99))
    report = text.removeprefix("Chest X-ray, radiology scan. Dx: ")
    report = report.removesuffix(". Clear anatomy, high-contrast grayscale.")
    assert len(report) == 256
    assert "Mass" not in report
    assert lost == {"reports_cut_at_256_characters": 1, "captions_over_77_tokens": 0}
    text, lost = published_caption("Mass.", "", at_most(3))
    assert "Dx: Mass.. Clear" in text
    assert lost == {"reports_cut_at_256_characters": 0, "captions_over_77_tokens": 1}
