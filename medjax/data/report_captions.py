"""Captions out of radiologists' reports: whole sentences that fit a text encoder.

    Chest X-ray. Right upper lobe opacity. Heart size is normal. Frontal view.

The impression, which is the radiologist's conclusion, comes first, then the findings,
as far as 77 tokens reach; the view has its place kept. So nothing is cut off later, in
training, where nobody would see what was lost.
"""

import re
from collections import Counter
from collections.abc import Callable

Fits = Callable[[str], bool]
"""Whether a text encoder takes the whole of a text."""

_BEGINNING = "Chest X-ray."
_PUBLISHED_LENGTH = 256
# Reports count their sentences ("2. Stable cardiomegaly."), end some with a second full
# stop, and forget the space after others.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bDr\.)(?:\s+|(?=[A-Z][a-z]))")
_NUMBER = re.compile(r"^\d+[.)]\s*")


def report_caption(
    impression: str, findings: str, view: str, fits: Fits
) -> tuple[str, Counter[str]]:
    """Describe a radiograph by its report, in whole sentences from its beginning.

    Args:
        impression: That section of the report, or "".
        findings: That section of the report, or "".
        view: "frontal", "PA" and so on; "" where unknown.
        fits: Whether the text encoder takes a caption whole.

    Returns:
        The caption, and what was left out: `captions_shortened` (0 or 1),
        `sentences_left_off`, and `captions_cut_in_a_sentence` (0 or 1), where not even
        the first sentence fits: then its first words stand for it.
    """
    ending = f"{view[:1].upper()}{view[1:]} view." if view else ""
    told = sentences(impression, findings)
    count = _fitting(told, ending, fits)
    kept, is_cut = told[:count], False
    if told and not kept:
        words = told[0].split()
        kept, is_cut = words[: _fitting(words, ending, fits)], True
    left_off = len(told) - max(count, is_cut)
    lost = Counter(
        captions_shortened=int(bool(left_off or is_cut)),
        sentences_left_off=left_off,
        captions_cut_in_a_sentence=int(is_cut),
    )
    return _join(_BEGINNING, *kept, ending), lost


def _fitting(parts: list[str], ending: str, fits: Fits) -> int:
    """Return how many parts, from the first, fit between beginning and ending."""
    count = len(parts)
    while count and not fits(_join(_BEGINNING, *parts[:count], ending)):
        count -= 1
    return count


def published_caption(
    impression: str, findings: str, fits: Fits
) -> tuple[str, Counter[str]]:
    """Write the prompt of the published system, with its fault.

    The report is cut after 256 characters, in the middle of a word and often before the
    impression, which stands last; and what then follows it reaches beyond the 77 tokens
    that CLIP takes, so that in training the end is cut off again.

    Args:
        impression: That section of the report, or "".
        findings: That section of the report, or "".
        fits: Whether the text encoder takes a caption whole.

    Returns:
        The prompt, and what was left out: `reports_cut_at_256_characters` and
        `captions_over_77_tokens`, 0 or 1 each.

    Source: the training prompts of track 2's original system.
    """
    report = _join(findings, impression)
    text = (
        f"Chest X-ray, radiology scan. Dx: {report[:_PUBLISHED_LENGTH]}. "
        "Clear anatomy, high-contrast grayscale."
    )
    return text, Counter(
        reports_cut_at_256_characters=int(len(report) > _PUBLISHED_LENGTH),
        captions_over_77_tokens=int(not fits(text)),
    )


def sentences(*sections: str) -> list[str]:
    """Split sections of a report into sentences, each once, without their numbers.

    Each ends in a full stop, or in what it ended in.
    """
    found: dict[str, str] = {}
    for section in sections:
        for piece in _SENTENCE_END.split(section):
            sentence = _NUMBER.sub("", piece).strip()
            # A number, a second full stop or what was blotted out says nothing.
            if re.search(r"[^\W\d_]", sentence.replace("XXXX", "")):
                sentence = _ended(sentence)
                found.setdefault(sentence.lower(), sentence)
    return list(found.values())


def _ended(sentence: str) -> str:
    return sentence if sentence[-1] in "!?" else f"{sentence.rstrip(' .')}."


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
