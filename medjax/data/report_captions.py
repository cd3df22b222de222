"""Write captions from radiologists' reports: whole sentences that fit a text encoder.

    Chest X-ray. Right upper lobe opacity. Heart size is normal. Frontal view.

The impression, which is the radiologist's conclusion, comes first. The findings follow
as far as 77 tokens allow. The view always has its place. So nothing is cut off later,
in training, where nobody sees the loss.
"""

import re
from collections import Counter
from collections.abc import Callable

Fits = Callable[[str], bool]
"""Function that returns whether a text encoder accepts a whole text."""

_BEGINNING = "Chest X-ray."
_PUBLISHED_LENGTH = 256
# Reports number their sentences ("2. Stable cardiomegaly."), end some with a second
# full stop, and omit the space after others.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bDr\.)(?:\s+|(?=[A-Z][a-z]))")
_NUMBER = re.compile(r"^\d+[.)]\s*")


def report_caption(
    impression: str, findings: str, view: str, fits: Fits
) -> tuple[str, Counter[str]]:
    """Describe a radiograph by the first whole sentences of its report.

    If not even the first sentence fits, the caption has the first words of it.

    Args:
        impression: Impression section of the report, or "".
        findings: Findings section of the report, or "".
        view: "frontal", "PA" and so on; "" if unknown.
        fits: Function that returns whether the text encoder accepts a whole caption.

    Returns:
        The caption, and counts of omissions: `captions_shortened` (0 or 1),
        `sentences_left_off`, and `captions_cut_in_a_sentence` (0 or 1).
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
    """Return how many parts, from the first on, fit between beginning and ending."""
    count = len(parts)
    while count and not fits(_join(_BEGINNING, *parts[:count], ending)):
        count -= 1
    return count


def published_caption(
    impression: str, findings: str, fits: Fits
) -> tuple[str, Counter[str]]:
    """Write the prompt of the published system, with its fault.

    The report is cut after 256 characters, in the middle of a word and often before the
    impression, which comes last. The text that follows the report can still exceed the
    77 tokens that CLIP accepts. Then training cuts off the end again.

    Args:
        impression: Impression section of the report, or "".
        findings: Findings section of the report, or "".
        fits: Function that returns whether the text encoder accepts a whole caption.

    Returns:
        The prompt, and counts of omissions: `reports_cut_at_256_characters` and
        `captions_over_77_tokens`, 0 or 1 each.

    Source: the training prompts of the published system for reports.
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

    Each ends in its exclamation or question mark, or in a full stop.
    """
    found: dict[str, str] = {}
    for section in sections:
        for piece in _SENTENCE_END.split(section):
            sentence = _NUMBER.sub("", piece).strip()
            # A number, a second full stop or a blotted-out word is not a sentence.
            if re.search(r"[^\W\d_]", sentence.replace("XXXX", "")):
                sentence = _ended(sentence)
                found.setdefault(sentence.lower(), sentence)
    return list(found.values())


def _ended(sentence: str) -> str:
    return sentence if sentence[-1] in "!?" else f"{sentence.rstrip(' .')}."


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
