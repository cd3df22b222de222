"""Make a worker process end with its main process, and for no other reason.

Ctrl-C reaches every process of a terminal's group. SLURM's warning reaches every
process of a job step. The main process then saves, and its workers must continue until
it stops them. They must not continue if it was killed.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

_ASKING_TO_STOP = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def born_deaf() -> Iterator[None]:
    """Block SIGINT and SIGTERM in processes that are started inside the context.

    They inherit the signal mask, so it applies even during their imports. The calling
    thread receives such signals when the context ends.
    """
    # Started later, with the first worker, the tracker lifts the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING_TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_work(worker: int, workers: int) -> None:
    """Set up a worker process. grain calls this before it unpickles the task."""
    del worker, workers
    # Without this, a worker spends two seconds and 200 MB on torch, which is not used.
    os.environ["USE_TORCH"] = "0"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
