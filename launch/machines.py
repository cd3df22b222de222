"""Keep a run alive on a rented machine: rent, train, rent again after a preemption.

One loop serves all machines. It asks for the machine's state and does what the state
needs. It keeps nothing itself, so it can be interrupted: the run continues, and the
same command follows it again.
"""

import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.steps import USER_ERROR_EXIT_CODE, Run, show
from medjax.cli import STOPPED_EXIT_CODE
from medjax.errors import UserError

HOST_SCRIPT = Path(__file__).with_name("host.sh")
# Words of gcloud about something that does not exist.
_MISSING = ("not found", "not_found")


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine to rent, and the commands for it.

    Attributes:
        create: Rents the machine.
        describe: Prints its state.
        train: Trains on it; exits as medjax train does.
        revive: Rents the machine again after it was taken away.
        delete: Ends the rent.
        ready: State in which it can train.
        lost: States after it was taken away. In all others, the loop waits.
    """

    create: Run
    describe: Run
    train: Run
    revive: tuple[Run, ...]
    delete: Run
    ready: str
    lost: tuple[str, ...]

    def shown(self) -> str:
        """Return all commands, as a shell reads them, each with its turn."""
        steps = [
            dataclasses.replace(self.describe, comment="ask for the state"),
            dataclasses.replace(self.create, comment="if it does not exist"),
            dataclasses.replace(self.train, comment=f"once it is {self.ready}"),
            *(
                dataclasses.replace(one, comment=f"if it is {' or '.join(self.lost)}")
                for one in self.revive
            ),
            dataclasses.replace(self.delete, comment="after the run, without --keep"),
        ]
        return show(steps)


def host_command(target: str, image: str, training: Sequence[str]) -> str:
    """Return the command that trains on a host, for the shell there.

    The whole script is one of its words, so nothing needs to be copied there.

    Args:
        target: ``tpu`` or ``cuda``.
        image: Container image that has medjax.
        training: Arguments of medjax train.
    """
    script = HOST_SCRIPT.read_text()
    return shlex.join(
        ["sudo", "bash", "-c", script, "host.sh", target, image, *training]
    )


def keep_training(
    machine: Machine, *, keep: bool, max_restarts: int, wait: float = 30.0
) -> int:
    """Train on a machine until the run ends; return the run's exit code.

    Args:
        machine: Machine to rent.
        keep: Whether the machine stays rented after the run.
        max_restarts: Number of restarts after failures. A run that saved and stopped,
            and a machine that was taken away, do not count.
        wait: Seconds between two looks at the state.

    Raises:
        UserError: If the machine cannot be rented, or gcloud fails.
    """
    code = None
    failures = 0
    while code is None:
        state = _state(machine)
        print(f"{time.strftime('%H:%M:%S')}  {state or 'not rented'}", file=sys.stderr)
        if not state:
            _succeed(machine.create)
        elif state in machine.lost:
            failures = 0
            # No machine may be free at the moment: try again later.
            all(one.execute() == 0 for one in machine.revive)
        elif state == machine.ready:
            ended = machine.train.execute()
            failures += ended not in (0, USER_ERROR_EXIT_CODE, STOPPED_EXIT_CODE)
            final = ended in (0, USER_ERROR_EXIT_CODE) or failures > max_restarts
            code = ended if final else None
        if code is None:
            time.sleep(wait)
    if keep:
        print(f"still rented; to end it: {machine.delete.shown()}", file=sys.stderr)
    else:
        _succeed(machine.delete)
    return code


def _state(machine: Machine) -> str:
    """Return the state of a machine; "" if it does not exist.

    Raises:
        UserError: If gcloud cannot tell.
    """
    words = machine.describe.words
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"{words[0]} is not installed, or not in PATH") from error
    if done.returncode == 0:
        return done.stdout.strip()
    if any(one in done.stderr.lower() for one in _MISSING):
        return ""
    raise UserError(f"{shlex.join(words)} failed: {done.stderr.strip()}")


def _succeed(step: Run) -> None:
    """Run a command; raise UserError if it fails."""
    if code := step.execute():
        raise UserError(f"{shlex.join(step.words[:5])} … failed with exit code {code}")
