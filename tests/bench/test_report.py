"""Results say what was measured, alike in both files."""

import dataclasses
import json
import platform

import pytest

from bench import report
from bench.report import Machine, Spread
from medjax.errors import UserError

MACHINE = Machine("cpu", False, {"CPU": "a processor"})


def test_a_spread_is_median_least_and_largest():
    spread = Spread((3.0, 1.0, 10.0))
    assert str(spread) == "3 (1–10)"
    assert spread.as_json()["values"] == [3.0, 1.0, 10.0]


def test_a_ratio_is_taken_turn_by_turn():
    # Noise that doubles a turn of both leaves their ratio.
    ratio = Spread((1.0, 2.0)) / Spread((2.0, 4.0))
    assert ratio.values == (0.5, 0.5)


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1234"), (0.012345, "0.0123"), (9.876, "9.88")]
)
def test_numbers_have_three_digits_that_count(value, text):
    assert report.number(value) == text


def test_the_page_and_the_json_file_have_the_same_content(tmp_path):
    rows = [{"who": "a", "seconds": Spread((1.0, 2.0))}, {"who": "b", "seconds": 0.25}]
    page = report.write_results(
        "x", "Title", "How to read it.", {"T": rows}, MACHINE, ["numpy"], tmp_path
    )
    assert page == tmp_path / "x-cpu.md"
    text = page.read_text()
    assert "| a | 1.5 (1–2) |\n| b | 0.25 |" in text
    assert "| CPU | a processor |" in text
    content = json.loads(page.with_suffix(".json").read_text())
    assert content["tables"]["T"][0]["seconds"]["median"] == 1.5
    assert set(content["versions"]) == {"python", "numpy"}


@pytest.mark.parametrize(
    ("repeats", "load", "doubts"),
    [(3, 0.5, []), (2, 0.0, ["repeats: 2"]), (3, 0.6, ["load at the start: 0.6"])],
)
def test_a_page_says_itself_that_it_is_in_doubt(tmp_path, repeats, load, doubts):
    on = dataclasses.replace(MACHINE, load=load)
    rows = [{"steps": Spread((1.0,) * 5), "seconds": Spread((1.0,) * repeats)}]
    page = report.write_results("x", "T", "Read.", {"T": rows}, on, [], tmp_path)
    found = json.loads(page.with_suffix(".json").read_text())["doubts"]
    assert [said.partition(",")[0] for said in found] == doubts
    assert ("Do not rely on this page" in page.read_text()) == bool(doubts)


def test_this_machine_is_described():
    machine = report.machine()
    assert machine.device == "cpu" and not machine.accelerated
    assert machine.described["memory"].endswith("GiB")
    assert all(machine.described.values())
    assert platform.release() not in str(machine.described)


def test_an_absent_package_is_told_with_the_way_out():
    with pytest.raises(UserError, match="no_such_package.*pip install"):
        report.need(["no_such_package"], "the competitor torch")


def test_mistakes_are_one_line_and_exit_code_2(capsys):
    def main():
        raise UserError("too small")

    with pytest.raises(SystemExit) as stopped:
        report.run(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: too small\n"
