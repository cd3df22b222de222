"""Programs that record how they are called, in front of the real ones."""

import os
import shlex
from pathlib import Path

import pytest

PROGRAMS = (
    *("gcloud", "kubectl", "sky", "sbatch", "squeue", "scontrol", "docker", "medjax"),
    *("pip", "useradd", "uv", "curl"),
)
# What they do not record, they execute.
PASSING = ("sudo", "srun")
# In bash, because it starts ten times faster than Python. A call is the number of its
# words, the words and the input, each ended by a zero byte. The first line of a reply
# is an exit code and a word.
_RECORD = """\
#!/bin/bash
cd {folder} || exit 99
program=${{0##*/}}
{{
  printf '%s\\0' $(($# + 1)) "$program" "$@"
  for word in "$@"; do [[ $word == - ]] && cat; done
  printf '\\0'
}} >>calls
for file in reply-*; do
  [[ -s $file ]] || continue
  {{ read -r code wanted; IFS= read -r -d '' text; }} <"$file"
  for word in "$@"; do
    if [[ $word == "$wanted" ]]; then
      : >"$file"
      if ((code)); then printf '%s' "$text" >&2; else printf '%s' "$text"; fi
      exit "$code"
    fi
  done
done
exit 0
"""


class Recorder:
    """Programs in a folder that is first in PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        text = _RECORD.format(folder=shlex.quote(str(folder)))
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
        for file in self.folder.glob("reply-*"):
            file.unlink()
        for number, (word, text, code) in enumerate(replies):
            (self.folder / f"reply-{number:03}").write_text(f"{code} {word}\n{text}")

    def calls(self) -> list[tuple[list[str], str]]:
        """Return the words and the input of each call since the last time."""
        file = self.folder / "calls"
        text = file.read_bytes().decode() if file.exists() else ""
        parts = iter(text.split("\0"))
        file.unlink(missing_ok=True)
        found = []
        while count := next(parts):
            words = [next(parts) for _ in range(int(count))]
            found.append((words, next(parts)))
        return found
