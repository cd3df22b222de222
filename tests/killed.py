"""Kill a process at each step that it takes on the disk."""

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

# What changes a disk, as Python's audit events name it. `open` is any opening, and
# precedes the writing; `close` and `fsync` have no event.
_EVENTS = {
    *("open", "os.mkdir", "os.rename", "os.truncate", "os.remove", "os.rmdir"),
    *("os.link", "os.symlink", "shutil.rmtree"),
}
_RELATIVE = {"os.remove", "os.rmdir"}


def kills(act: Callable[[], object], folder: Path) -> Iterator[int]:
    """Run `act` in forks, each killed one step below `folder` later than the last.

    Yields:
        The number of the step before which the fork was killed. The last one, which
        runs to its end, yields nothing.
    """
    for step in itertools.count():
        process = os.fork()
        if process == 0:
            _act(act, str(folder), step)
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield step


def _act(act: Callable[[], object], folder: str, step: int) -> None:
    """Run `act`, end this process, and kill it before the given step."""
    count = itertools.count()

    def hook(event: str, arguments: tuple) -> None:
        # What is in a removed folder is named relative to that.
        ours = event in _RELATIVE or any(str(x).startswith(folder) for x in arguments)
        if event in _EVENTS and ours and next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        act()
    # Whatever it is: this process must not return to pytest.
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
