"""Call a function in a process of its own, which ends at its answer."""

import logging
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from medjax.errors import UserError


def call_in_process(function: Callable[..., Any], *given: Any) -> Any:
    """Return a function's result, computed in a new process that ends with its threads.

    Args:
        function: A function of a module, which a new process can import.
        given: Arguments. They and the result must be picklable.

    Raises:
        UserError: As the function does, or if the process was killed.
        RuntimeError: If it failed in another way. Its traceback is then on stderr.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, given))
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        if code < 0:
            reason = signal.Signals(-code).name
            hint = "; the machine may lack memory" if reason == "SIGKILL" else ""
            raise UserError(
                f"the compiler's process ended with {reason}{hint}"
            ) from None
        raise RuntimeError(f"the compiler's process ended with code {code}") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, UserError):
        raise answer
    return answer


def _answer(
    pipe: Connection, function: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    """Send a function's result or its `UserError`, and end the process."""
    # Without the handler for progress bars, whose lock would not be freed.
    messages = logging.getLogger("medjax")
    messages.addHandler(logging.StreamHandler())
    messages.setLevel(logging.INFO)
    messages.propagate = False
    # Ctrl-C reaches both processes, and the first one reports it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        try:
            answer = function(*given)
        except UserError as error:
            answer = error
        pipe.send(answer)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    # At once, because a thread of the compiler may still run.
    os._exit(0)
