"""A process measures its own memory, not that of the process that started it."""

import subprocess
import sys

from medjax import host_memory

MIB = 2**20
SAY = """
from medjax.host_memory import host_peak_bytes
before = host_peak_bytes()
memory = bytearray(300 * 2**20)
memory[::4096] = b"x" * len(memory[::4096])
print(before, host_peak_bytes())
"""


def test_what_a_process_used_is_counted_and_what_its_parent_did_is_not():
    memory = bytearray(500 * MIB)
    memory[::4096] = b"x" * len(memory[::4096])
    said = subprocess.run(
        [sys.executable, "-c", SAY], capture_output=True, text=True, check=True
    )
    before, after = map(int, said.stdout.split())
    assert 5 * MIB < before < 200 * MIB
    assert 250 * MIB < after - before < 350 * MIB


def test_a_system_that_does_not_count_it_is_asked_otherwise(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSS:\t 100 kB\n")
    monkeypatch.setattr(host_memory, "_STATUS", status)
    assert host_memory.host_peak_bytes() > 5 * MIB
