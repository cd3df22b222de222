"""Time is given to operations once, and operations to what they do."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from bench import breakdown, report
from bench.breakdown import ATTENTION, NORMS, OTHER, PRODUCTS, UPDATE

SECOND = 1e9
MODULE = """HloModule jit_sharded_step, entry_computation_layout={()->f32[]}

%scores (p: f32[8,40,64]) -> f32[8,64,64] {
  %p = f32[8,40,64]{2,1,0} parameter(0)
  ROOT %dot.1 = f32[8,64,64]{2,1,0} dot(%p, %p), lhs_batch_dims={0}, rhs_batch_dims={0}
}

%rows (q: f32[4,4]) -> f32[4,4] {
  %q = f32[4,4]{1,0} parameter(0)
  ROOT %dot.2 = f32[4,4]{1,0} dot(%q, %q), lhs_contracting_dims={1}
}

ENTRY %main (x: f32[4,4]) -> f32[] {
  %f.1 = f32[8] fusion(%x), calls=%scores
  %f.2 = f32[4] fusion(%x), calls=%rows, metadata={op_name="jit(s)/jvp(U)/attn1/to_k/d"}
  %e.1 = f32[4] exponential(%x), metadata={op_name="jit(s)/jvp(U)/attn1/exp"}
  %n.1 = f32[4] add(%x, %x), metadata={op_name="jit(s)/transpose(jvp(U))/norm1/add"}
  %u.1 = f32[4] add(%x, %x), metadata={op_name="jit(s)/cond/add"}
  ROOT %o.1 = f32[] add(%x, %x), metadata={op_name="jit(s)/jvp(U)/jit(silu)/mul"}
}
"""


def test_time_is_given_once():
    # The inner runs in the outer's stead; what runs at once has half of the time each.
    first = [(0, 10 * SECOND, "outer"), (2 * SECOND, 6 * SECOND, "inner")]
    second = [(4 * SECOND, 8 * SECOND, "other"), (20 * SECOND, 21 * SECOND, "outer")]
    assert breakdown.shared([first, second]) == pytest.approx(
        {"outer": 2 + 1 + 2 + 1, "inner": 2 + 1, "other": 1 + 1}
    )


def test_instructions_are_what_they_compute():
    kinds = breakdown.kinds_of_instructions(MODULE)
    expected = {
        "f.1": ATTENTION,
        "f.2": PRODUCTS,
        "e.1": ATTENTION,
        "n.1": NORMS,
        "u.1": UPDATE,
        "o.1": OTHER,
    }
    assert {name: kinds[name] for name in expected} == expected


@pytest.mark.release
def test_the_command_divides_the_whole_step(tmp_path, monkeypatch, capsys):
    flags = "--network=tiny --size=32 --steps=1 --turns=1"
    monkeypatch.setattr("sys.argv", ["breakdown", *flags.split(), f"--out={tmp_path}"])
    report.run(breakdown.main)
    (page,) = tmp_path.glob("breakdown-*.md")
    assert page.read_text() in capsys.readouterr().out
    for rows in json.loads(page.with_suffix(".json").read_text())["tables"].values():
        *parts, whole = rows
        for name in ("medjax", "torch"):
            seconds = [row[name]["median"] for row in parts]
            assert sum(seconds) == pytest.approx(whole[name]["median"])
            assert seconds[0] > 0
