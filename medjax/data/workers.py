"""What makes a worker process end with its main process, and with nothing else.

Ctrl-C reaches every process of a terminal's group, and SLURM's warning every process of
a step. The main process then saves; its workers must go on until it stops them. They
must not go on when it was killed.
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
    """Keep processes started inside from hearing SIGINT and SIGTERM, from the first on.

    They inherit the mask, which holds while they still import. The calling thread hears
    of such signals at the end.
    """
    # To start it later, beside the first worker, would lift the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING_TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_work(worker: int, workers: int) -> None:
    """Set up a worker process before it unpickles what to do; grain calls it there."""
    del worker, workers
    # Spares it the two seconds and 200 MB of torch that it would never use.
    os.environ["USE_TORCH"] = "0"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
