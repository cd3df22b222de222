"""Kill a process before each of its changes to the disk."""

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

# Python's audit events of changes to a disk. `open` is any opening and comes before the
# writing. `close` and `fsync` have no event.
_EVENTS = {
    *("open", "os.mkdir", "os.rename", "os.truncate", "os.remove", "os.rmdir"),
    *("os.link", "os.symlink", "shutil.rmtree"),
}
_RELATIVE = {"os.remove", "os.rmdir"}


def kills(act: Callable[[], object], folder: Path) -> Iterator[int]:
    """Run `act` in forks. Each is killed one step below `folder` later than the last.

    Yields:
        Number of the step before which the fork was killed. The last fork runs to its
        end and yields nothing.
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
    """Run `act` and end this process; kill it before the given step."""
    count = itertools.count()

    def hook(event: str, arguments: tuple) -> None:
        # Files in a removed folder have names relative to the folder.
        ours = event in _RELATIVE or any(str(x).startswith(folder) for x in arguments)
        if event in _EVENTS and ours and next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        act()
    # On any error, because this process must not return to pytest.
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
