from collections import Counter

import pytest

from medjax.data.splits import SPLITS, among, parse_percent, position_of, split_of
from medjax.errors import UserError


def test_the_split_of_a_patient_is_fixed_for_ever():
    # Written down, so that a change of the hash cannot go unseen: it would mix
    # the patients of data sets prepared before and after.
    known = {"1": "train", "2": "validation", "5": "test", "1281": "train"}
    assert {group: split_of(group) for group in known} == known
    assert position_of("5") == pytest.approx(0.9342814977021432)


def test_shares_are_as_asked():
    counts = Counter(split_of(str(number)) for number in range(5000))
    assert counts["train"] == pytest.approx(4000, rel=0.03)
    assert counts["validation"] == pytest.approx(500, rel=0.15)


def test_a_share_of_zero_gets_nobody():
    fractions = parse_percent(["50", "50", "0"])
    assert {split_of(str(n), fractions) for n in range(500)} == {"train", "validation"}


def test_shares_among_some_splits_keep_their_ratio():
    fractions = parse_percent(["60", "20", "20"])
    some = among(("validation", "train"), fractions)
    assert list(some) == ["train", "validation"]
    assert some == {"train": pytest.approx(0.75), "validation": pytest.approx(0.25)}
    assert among(SPLITS) == dict(zip(SPLITS, (0.8, 0.1, 0.1), strict=True))


def test_a_split_alone_gets_all_and_several_without_shares_are_refused():
    fractions = parse_percent(["100", "0", "0"])
    assert among(("test",), fractions) == {"test": 1.0}
    with pytest.raises(UserError, match="no share for validation or test"):
        among(("validation", "test"), fractions)


@pytest.mark.parametrize(
    "texts", [["80", "20"], ["80", "10", "x"], ["90", "20", "-10"]]
)
def test_wrong_shares_are_refused(texts):
    with pytest.raises(UserError, match="sum to 100"):
        parse_percent(texts)


def test_shares_are_read_in_percent():
    assert parse_percent(["80", "10", "10"]) == {
        name: pytest.approx(share)
        for name, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True)
    }
