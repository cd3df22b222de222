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

from launch.steps import Run, show
from medjax.cli import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE
from medjax.errors import UserError

HOST_SCRIPT = Path(__file__).with_name("host.sh")
# Words of gcloud about something that does not exist.
_MISSING = ("not found", "not_found")
# Exit code of ssh, and of gcloud for it, without a connection.
_NOT_CONNECTED = 255
# Errors in a row, half a minute apart, after which the loop ends; and the length of a
# connection that was a real one.
_MOST_ERRORS = 20
_LONG_SECONDS = 300.0


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
        lost: States after it was taken away.
        failed: States after it could not be rented. In all others, the loop waits.
    """

    create: Run
    describe: Run
    train: Run
    revive: tuple[Run, ...]
    delete: Run
    ready: str
    lost: tuple[str, ...]
    failed: tuple[str, ...] = ()

    def shown(self) -> str:
        """Return all commands, as a shell reads them, each with its turn."""
        taken = (*self.lost, *self.failed)
        steps = [
            dataclasses.replace(self.describe, comment="ask for the state"),
            dataclasses.replace(self.create, comment="if it does not exist"),
            dataclasses.replace(self.train, comment=f"once it is {self.ready}"),
            *(
                dataclasses.replace(one, comment=f"if it is {' or '.join(taken)}")
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
        UserError: If the machine cannot be rented or reached. It stays rented then.
    """
    loop = _Loop(machine, max_restarts)
    try:
        while (code := loop.turn()) is None:
            time.sleep(wait)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: the run continues. The same command follows it again. To "
            f"end the run and the bill: {machine.delete.shown()}",
            file=sys.stderr,
        )
        return INTERRUPTED_EXIT_CODE
    if keep:
        print(f"still rented; to end it: {machine.delete.shown()}", file=sys.stderr)
    else:
        _succeed(machine.delete)
    return code


@dataclasses.dataclass
class _Loop:
    """Counts of what must not repeat for ever.

    Attributes:
        machine: Machine to rent.
        max_restarts: Largest number of `failures`.
        failures: Failures of the run, or of renting, since the last preemption.
        silent: Errors of gcloud in a row, after its first answer.
        cut: Connections in a row that ended within `_LONG_SECONDS`.
        answered: Whether gcloud has told the state once.
    """

    machine: Machine
    max_restarts: int
    failures: int = 0
    silent: int = 0
    cut: int = 0
    answered: bool = False

    def turn(self) -> int | None:
        """Do what the state needs; return the exit code of a run that ended."""
        try:
            state = _state(self.machine)
        except UserError as error:
            self.silent += 1
            if not self.answered or self.silent > _MOST_ERRORS:
                raise
            print(error, file=sys.stderr)
            return None
        self.answered, self.silent = True, 0
        print(f"{time.strftime('%H:%M:%S')}  {state or 'not rented'}", file=sys.stderr)
        if state == self.machine.ready:
            return self._train()
        if not state:
            _succeed(self.machine.create)
        elif state in self.machine.lost:
            self.failures = 0
            self._revive()
        elif state in self.machine.failed:
            self.failures += 1
            if self.failures > self.max_restarts:
                raise UserError(f"no machine: {self.machine.describe.shown()} says why")
            self._revive()
        return None

    def _revive(self) -> None:
        """Rent again. If no machine is free now, the next turn tries again."""
        all(one.execute() == 0 for one in self.machine.revive)

    def _train(self) -> int | None:
        started = time.monotonic()
        code = self.machine.train.execute()
        if code == _NOT_CONNECTED:
            long = time.monotonic() - started > _LONG_SECONDS
            self.cut = 0 if long else self.cut + 1
            if self.cut > _MOST_ERRORS:
                raise UserError(
                    "cannot connect. The run may continue, and the machine is still "
                    f"rented; to end both: {self.machine.delete.shown()}"
                )
            return None
        self.cut = 0
        self.failures += code not in (0, USER_ERROR_EXIT_CODE, STOPPED_EXIT_CODE)
        ended = code in (0, USER_ERROR_EXIT_CODE) or self.failures > self.max_restarts
        return code if ended else None


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
