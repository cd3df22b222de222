"""Programs that record how they are called, in front of the real ones."""

import json
import os
import sys
from pathlib import Path

import pytest

PROGRAMS = (
    *("gcloud", "kubectl", "sky", "sbatch", "scontrol", "docker", "medjax"),
    *("pip", "useradd", "uv", "curl"),
)
# What they do not record, they execute.
PASSING = ("sudo", "srun")
_RECORD = """\
#!{python} -IS
import json, sys
from pathlib import Path
folder = Path({folder!r})
program = Path(sys.argv[0]).name
text = sys.stdin.read() if "-" in sys.argv else ""
with open(folder / "calls", "a") as calls:
    calls.write(json.dumps([[program, *sys.argv[1:]], text]) + "\\n")
file = folder / "replies"
replies = json.loads(file.read_text())
for reply in replies:
    if reply["word"] in sys.argv:
        replies.remove(reply)
        file.write_text(json.dumps(replies))
        sys.stdout.write(reply["out"])
        sys.stderr.write(reply["err"])
        sys.exit(reply["code"])
"""


class Recorder:
    """Programs in a folder that is first in PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.reply()
        text = _RECORD.format(python=sys.executable, folder=str(folder))
        for name in PROGRAMS:
            self.make(name, text)
        for name in PASSING:
            self.make(name, '#!/bin/bash\nexec "$@"\n')
        monkeypatch.setenv("PATH", f"{self.programs}{os.pathsep}{os.environ['PATH']}")

    def make(self, name: str, text: str) -> Path:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def reply(self, *replies: tuple[str, str, int]) -> None:
        """Answer the next calls that have a word, by output or an error, and a code."""
        rows = [
            {
                "word": word,
                "out": "" if code else text,
                "err": text if code else "",
                "code": code,
            }
            for word, text, code in replies
        ]
        (self.folder / "replies").write_text(json.dumps(rows))

    def calls(self) -> list[tuple[list[str], str]]:
        """Return the words and the input of each call since the last time."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [(words, text) for words, text in map(json.loads, lines)]
