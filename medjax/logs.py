"""What the commands show of what is logged: our lines, and the libraries' warnings."""

import logging
import sys
import threading
from typing import Any

logger = logging.getLogger(__name__)


class BarFriendlyHandler(logging.Handler):
    """Writes log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if anybody reads it: a log must not end what it tells of."""
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def set_up(debug: bool) -> None:
    """Log our own messages from INFO; the libraries' from WARNING unless `debug`."""
    handler = BarFriendlyHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logging.INFO if debug else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # What orbax logs as an error, itself or by its event loop, it raises too.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(level if debug else logging.CRITICAL)
    logging.getLogger("medjax").setLevel(logging.INFO)
    if not debug:
        sys.unraisablehook = _leave_unsaid
        threading.excepthook = _tell_of_thread


def _leave_unsaid(unraisable: Any) -> None:
    """Stand in for the traceback of what a thread of a library cannot raise.

    A failed save lets orbax's threads call a loop that is closed, after the failure
    itself was raised.
    """
    logger.debug("in a thread: %r", unraisable.exc_value)


def _tell_of_thread(failure: Any) -> None:
    """Say in one line that a thread, such as TensorBoard's writer, has failed.

    One that the end of the program leaves without its queue is no news any more.
    """
    level = logging.WARNING if threading.main_thread().is_alive() else logging.DEBUG
    logger.log(level, "%s has failed: %s", failure.thread, failure.exc_value)
