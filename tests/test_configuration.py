"""Configs are parsed completely, or refused in one line that says what to fix."""

import dataclasses
from typing import Literal

import pytest

from medjax.configuration import parse, parse_config, to_config_dict
from medjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sub:
    rate: float = 1
    count: int = 4
    flag: bool = False
    name: str = "x"
    kind: Literal["cosine", "linear"] = "linear"
    pair: tuple[float, float] = (1.0, 2.0)
    names: tuple[str, ...] = ()
    limit: float | None = None
    clip: float | None = 1.0
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise UserError(f"rate is {self.rate}, expected at least 0")


def parsed(**changes: object) -> Sub:
    config = to_config_dict({"sub": Sub()})
    for key, value in changes.items():
        with config.unlocked(), config.ignore_type():
            config.sub[key] = value
    return parse(config.sub, Sub, "config.sub")


def test_defaults_come_back_as_they_were():
    assert parsed() == Sub()


def test_fields_can_be_set_and_optional_ones_to_none_and_back():
    config = to_config_dict({"sub": Sub()}).lock()
    config.sub.rate = 0.5
    config.sub.clip = None
    config.sub.limit = 3
    config.sub.size = (2, 3)
    sub = parse(config.sub, Sub, "config.sub")
    assert (sub.rate, sub.clip, sub.limit, sub.size) == (0.5, None, 3.0, (2, 3))
    with pytest.raises(TypeError):
        config.sub.limit = "three"


def test_ints_widen_to_floats_and_lists_to_tuples():
    sub = parsed(rate=2, pair=[3, 4], names=["a"])
    assert (sub.rate, sub.pair, sub.names) == (2.0, (3.0, 4.0), ("a",))
    assert isinstance(sub.rate, float)
    assert isinstance(sub.pair[0], float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": True}, "config.sub.count is True (bool), expected int"),
        ({"count": 1.5}, "config.sub.count is 1.5 (float), expected int"),
        ({"count": None}, "config.sub.count is None (NoneType), expected int"),
        ({"rate": "fast"}, "config.sub.rate is 'fast' (str), expected float"),
        ({"kind": "cosin"}, "one of cosine, linear; did you mean 'cosine'?"),
        ({"pair": (1.0,)}, "pair has 1 values (1.0,), expected (float, float)"),
        ({"pair": (1.0, "b")}, "config.sub.pair[1] is 'b' (str), expected float"),
        ({"names": "abc"}, "'abc' (str), expected a tuple of str"),
        ({"names": ("a,b",)}, """--config.sub.names="('a', 'b')\""""),
        ({"size": (1, 2.5)}, "config.sub.size[1] is 2.5 (float), expected int"),
        ({"counts": 3}, "config.sub has no key 'counts'; did you mean 'count'?"),
        ({"zzz": 3}, "config.sub has no key 'zzz'; it has rate, count,"),
        ({"rate": -1.0}, "config.sub.rate is -1.0, expected at least 0"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(UserError) as error:
        parsed(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named():
    values = dataclasses.asdict(Sub())
    del values["pair"]
    with pytest.raises(UserError, match=r"config\.sub\.pair is missing"):
        parse(values, Sub, "config.sub")


@dataclasses.dataclass(frozen=True)
class Whole:
    sub: Sub = Sub()
    count: int = 1


def test_a_section_may_have_sections():
    config = to_config_dict({"whole": Whole(Sub(clip=None))}).lock()
    config.whole.sub.limit = 3
    whole = parse(config.whole, Whole, "config.whole")
    assert whole == Whole(Sub(clip=None, limit=3.0))
    config.whole.sub.rate = -1.0
    with pytest.raises(UserError, match=r"^config\.whole\.sub\.rate is -1\.0"):
        parse(config.whole, Whole, "config.whole")
    with pytest.raises(UserError, match=r"config\.whole\.sub is 3 \(int\), exp"):
        parse({"sub": 3, "count": 1}, Whole, "config.whole")


def test_sections_must_be_those_declared():
    config = to_config_dict({"sub": Sub()})
    assert parse_config(config, {"sub": Sub}) == {"sub": Sub()}
    with pytest.raises(UserError, match=r"config\.other is missing"):
        parse_config(config, {"sub": Sub, "other": Sub})
    with pytest.raises(UserError, match="no key 'sub'; did you mean 'sup'"):
        parse_config(config, {"sup": Sub})
    with pytest.raises(UserError, match=r"config.sub is 3 \(int\), expected a section"):
        parse_config({"sub": 3}, {"sub": Sub})


def test_a_field_that_no_config_can_hold_is_a_programming_error():
    bad = dataclasses.make_dataclass("Bad", [("a", dict[str, int])])
    with pytest.raises(TypeError, match=r"Bad\.a"):
        to_config_dict({"bad": bad({})})
