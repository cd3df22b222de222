"""Run all tests, in shards, and write a page of the results.

    make test-all             run the shards that have not passed at this commit
    make test-all SHARD=2/7   run this shard, at most 60 minutes on two cores

The results of a shard are kept in .test-all/COMMIT. So an interrupted run continues
with the missing shards. The page is bench/results/test-all.md.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "bench" / "results" / "test-all.md"
PARTS = 4
# Tests that must pass on the newest Python, jax and transformers, without torch and
# diffusers. Also tests of results on meshes that a new jax could change.
PORTABLE = (
    "-m",
    "not release",
    "tests/pretrained",
    "tests/runs",
    "tests/data/test_tokens.py",
    "tests/test_export.py",
    "tests/test_export_lora.py",
    "tests/tasks/test_controlnet_task.py",
    "tests/tasks/test_lora_task.py",
    "tests/tasks/test_unconditional.py",
    "tests/training/test_latent_cache.py",
    "tests/training/test_meshes.py",
    "tests/training/test_step.py",
)
NEWEST_TORCH = (
    "tests/parity/test_newest_torch.py",
    "tests/parity/test_newest_lora.py",
)
WHOLE_DEMOS = ("tests/bench/test_whole_demos.py",)
PACKAGES = "jax flax optax orbax-checkpoint transformers torch diffusers".split()
# Exit codes of pytest: all passed; some failed. After others, results are incomplete.
RAN = (0, 1)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One part of all tests.

    Attributes:
        name: Name on the page.
        environment: Folder of the Python environment that runs it.
        arguments: Further arguments for pytest.
    """

    name: str
    environment: str
    arguments: tuple[str, ...]


SHARDS = (
    *(
        Shard(
            f"all tests, part {part} of {PARTS}",
            ".venv",
            (f"--shard={part}/{PARTS}", *(f"--ignore={file}" for file in WHOLE_DEMOS)),
        )
        for part in range(1, PARTS + 1)
    ),
    Shard("exports in the newest PyTorch diffusers", ".venv", NEWEST_TORCH),
    Shard("demos trained to their end", ".venv", WHOLE_DEMOS),
    Shard("newest Python, no torch, no diffusers", ".venv-newest", PORTABLE),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one shard.

    Attributes:
        date: Time of its end, UTC.
        minutes: Duration in minutes.
        versions: Versions of Python and of the main packages.
        tests: Number of tests that ran or were skipped.
        failed: Names of the tests that failed.
        skipped: Names and reasons of the tests that were skipped.
    """

    date: str
    minutes: float
    versions: str
    tests: int
    failed: list[str]
    skipped: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested shards; return 1 if a shard has failed or is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shard", type=shard_number, help=f"K/{len(SHARDS)}")
    asked = parser.parse_args(arguments)
    commit = current_commit()
    folder = REPOSITORY / ".test-all" / commit
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [asked.shard] if asked.shard else missing(folder)
    for number in numbers:
        run(number, asked.jobs, folder)
        PAGE.write_text(page(commit, read(folder)))
    results = read(folder)
    print(page(commit, results))
    complete = len(results) == len(SHARDS)
    return 0 if complete and not any(r.failed for r in results.values()) else 1


def shard_number(text: str) -> int:
    """Return k of ``k/n``, where n is the number of shards."""
    number, _, count = text.partition("/")
    if count != str(len(SHARDS)) or not 1 <= int(number) <= len(SHARDS):
        raise argparse.ArgumentTypeError(f"{text}: expected 1/{len(SHARDS)} and so on")
    return int(number)


def current_commit() -> str:
    """Return the short hash of the commit, with "-modified" if files differ from it.

    The page does not count, because the first shard already changes it.
    """
    page = f":!{PAGE.relative_to(REPOSITORY)}"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", page)
    return git("rev-parse", "--short=12", "HEAD") + ("-modified" if changed else "")


def git(*arguments: str) -> str:
    """Return the output of a git command."""
    done = subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def missing(folder: Path) -> list[int]:
    """Return the numbers of the shards that have not passed."""
    results = read(folder)
    numbers = range(1, len(SHARDS) + 1)
    return [n for n in numbers if n not in results or results[n].failed]


def read(folder: Path) -> dict[int, Result]:
    """Return the results recorded so far, by the shard's number."""
    return {
        int(path.stem): Result(**json.loads(path.read_text()))
        for path in sorted(folder.glob("*.json"))
    }


def run(number: int, jobs: int, folder: Path) -> None:
    """Run one shard and record its result.

    Raises:
        SystemExit: If pytest did not finish. Nothing is recorded then.
        CalledProcessError: If the environment cannot be made.
    """
    shard = SHARDS[number - 1]
    print(f"\n==> shard {number}/{len(SHARDS)}: {shard.name}", flush=True)
    variables = make_environment(shard)
    report = folder / f"{number}.xml"
    python = REPOSITORY / shard.environment / "bin" / "python"
    command = [python, "-m", "pytest", "-n", str(jobs), "--durations=20"]
    start = time.monotonic()
    done = subprocess.run(
        [*command, f"--junitxml={report}", *shard.arguments],
        cwd=REPOSITORY,
        env=os.environ | variables,
        check=False,
    )
    if done.returncode not in RAN:
        sys.exit(f"error: shard {number}: pytest exited with {done.returncode}")
    minutes = (time.monotonic() - start) / 60
    torch = variables.get("MEDJAX_NEWEST_TORCH")
    said = "; ".join(versions(Path(p)) for p in (python, torch) if p)
    result = summarise(report, minutes, said)
    written = json.dumps(dataclasses.asdict(result), indent=1)
    (folder / f"{number}.json").write_text(written)


def make_environment(shard: Shard) -> dict[str, str]:
    """Make the environment that a shard needs; return the variables that select it."""
    needed = {NEWEST_TORCH: "torch", PORTABLE: "newest"}.get(shard.arguments)
    if needed is None:
        return {}
    folder = REPOSITORY / f".venv-{needed}"
    if not folder.is_dir():
        subprocess.run([".ci/environments", needed], cwd=REPOSITORY, check=True)
    torch = {"MEDJAX_NEWEST_TORCH": str(folder / "bin" / "python")}
    return torch if needed == "torch" else {}


def versions(python: Path) -> str:
    """Return the versions of a Python and of its main packages."""
    script = (
        "import importlib.metadata as m, platform; "
        f"names = {PACKAGES!r}; have = {{d.name.lower() for d in m.distributions()}}; "
        "print(', '.join([f'Python {platform.python_version()}', "
        "*(f'{n} {m.version(n)}' for n in names if n in have)]))"
    )
    done = subprocess.run(
        [python, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def summarise(report: Path, minutes: float, versions: str) -> Result:
    """Return the result in pytest's JUnit report."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed, skipped = [], []
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif (skip := case.find("skipped")) is not None:
            skipped.append(f"{name}: {skip.get('message')}")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    return Result(now, round(minutes, 1), versions, len(cases), failed, skipped)


def page(commit: str, results: dict[int, Result]) -> str:
    """Return the results in Markdown."""
    lines = [
        "# All tests",
        "",
        f"`make test-all` at commit `{commit}`, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}.",
        "",
        "| shard | what | ended (UTC) | minutes | passed | failed | skipped |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, shard in enumerate(SHARDS, 1):
        result = results.get(number)
        cells = "not run |  |  |  | "
        if result:
            bad, left = len(result.failed), len(result.skipped)
            passed = result.tests - bad - left
            cells = f"{result.date} | {result.minutes} | {passed} | {bad} | {left}"
        lines.append(f"| {number} | {shard.name} | {cells} |")
    lines += ["", "Versions:", ""]
    lines += [f"- shard {n}: {r.versions}" for n, r in sorted(results.items())]
    lines += listed("Failed", [name for r in results.values() for name in r.failed])
    lines += listed("Skipped", [name for r in results.values() for name in r.skipped])
    return "\n".join(lines).rstrip() + "\n"


def listed(title: str, names: Sequence[str]) -> list[str]:
    """Return the lines of a list with a title and its length."""
    return ["", f"{title}: {len(names)}.", "", *(f"- `{name}`" for name in names)]


if __name__ == "__main__":
    sys.exit(main())
