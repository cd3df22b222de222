"""A full disk leaves no half data set; the same command completes it later."""

import subprocess
from pathlib import Path

import pytest

from medjax.data.config import DataConfig
from medjax.data.pipeline import dataset_metadata
from medjax.data.roots import find_prepared
from medjax.prepare import prepare
from tests import in_process
from tests.commands import files, medjax, one_line
from tests.images import write_image

# In the shell's blocks of 512 bytes; less than the prepared data.
LIMIT = 600


def full_by_limit(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run prepare with a limit of `LIMIT` for the size of a file."""
    del out
    script = f'ulimit -f {LIMIT} && exec "$@"'
    return medjax("prepare", *arguments, before=("sh", "-c", script, "sh"))


def full_by_disk(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run prepare on a disk of the size `LIMIT`; keep the files that it leaves."""
    kept = out.with_name("kept")
    script = (
        f"mount -t tmpfs -o size={512 * LIMIT} none {out} && "
        f'{{ "$@"; code=$?; cp -r {out} {kept}; exit $code; }}'
    )
    before = ("unshare", "-Urm", "sh", "-c", script, "sh")
    done = medjax("prepare", *arguments, before=before)
    out.rmdir()
    kept.rename(out)
    return done


def can_mount() -> bool:
    try:
        command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


FULL = [full_by_limit, full_by_disk] if can_mount() else [full_by_limit]


def arguments_for(folder: Path, *more: str) -> tuple[str, ...]:
    """Write more images than fit; return the arguments to prepare ``folder/out``."""
    for number in range(30):
        write_image(folder / "raw" / f"{number}.png", 80, 80, seed=number)
    source, out = folder / "raw", folder / "out"
    return ("--dataset=folder", f"--source={source}", f"--out={out}", *more)


@pytest.mark.parametrize("run_full", FULL)
def test_a_full_disk_leaves_no_half_data_set(run_full, tmp_path):
    arguments, out = arguments_for(tmp_path), tmp_path / "out"
    out.mkdir()
    line = one_line(run_full(out, *arguments))
    assert f"--out={out}: cannot be written: " in line
    assert "File too large" in line or "No space left on device" in line
    assert files(out) == {}
    assert find_prepared(out) == []
    assert in_process.medjax("prepare", *arguments).returncode == 0
    splits = dataset_metadata(DataConfig(root=str(out))).splits
    assert sum(splits.values()) == 30


def test_a_full_disk_keeps_the_data_set_that_is_there(tmp_path):
    for number in range(12):
        write_image(tmp_path / "few" / f"{number}.png", seed=number)
    out = tmp_path / "out"
    prepare("folder", tmp_path / "few", out)
    before = files(out)
    done = full_by_limit(out, *arguments_for(tmp_path, "--overwrite"))
    assert "existing data are unchanged" in one_line(done)
    assert files(out) == before
