"""What the attempts at a run came to, kept in its folder for who restarts it; a loop of deaths is ended here."""

import os
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from unetdist.cli import json_records
from unetdist.cli.credentials import mask
from unetdist.cli.json_records import Count
from unetdist.cli.logs import logger
from unetdist.errors import TrainingError
from unetdist.storage import files as storage

STATUS_FILE = "status.json"
STEP_FILE = "step"
"""Holds the step that has begun; written at each step, so it is no JSON."""

STOPPED_EARLY = 75
"""Exit code of what was stopped by a signal (EX_TEMPFAIL of sysexits.h): the same command continues."""

MOST_DEATHS = 3
"""At the same step, one after the other: one more attempt would only repeat them."""

_WIDTH = 20
"""Digits, so that each number covers the one before."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What `status.json` says.

    Attributes:
        state: `finished`: all steps are done. `stopped`: a signal asked for it; the same command continues. `failed`:
            it ended with the error `reason`. `running`: it runs, or died without a word.
        step: steps done; of a run that is running, at its start.
        reason: why it failed.
        is_final: whether the same command would only fail again, as it does where a setting is wrong.
        attempts: how often the run was started.
        deaths: steps in which the latest attempts died, without one between them that finished or was stopped; those
            that died before their first step are left out.
        machine: what the latest attempt ran on.
        performance: how it was made fast, or why it was not.
    """

    state: Literal["running", "finished", "stopped", "failed"] = "running"
    step: Count = 0
    reason: str = ""
    is_final: bool = False
    attempts: Count = 0
    deaths: tuple[Count, ...] = ()
    machine: str = field(default="", compare=False)
    performance: str = field(default="", compare=False)


def read_status(run_dir: str | os.PathLike[str]) -> Status | None:
    """The status of a run; None where it has none, or an unreadable one."""
    try:
        return json_records.build(Status, json_records.parse(storage.read_file(Path(run_dir) / STATUS_FILE)))
    except (OSError, ValueError):
        return None


def status_time(run_dir: str | os.PathLike[str]) -> int:
    """When the status was last written, in nanoseconds of some clock; 0: never."""
    try:
        return (Path(run_dir) / STATUS_FILE).stat().st_mtime_ns
    except OSError:
        return 0


class Attempt:
    """This attempt at the run in `run_dir`, kept by rank 0; on other ranks every method does nothing."""

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        is_main: bool,
        machine: str = "",
        performance: str = "",
        claim: ExitStack | None = None,
    ) -> None:
        """Know nothing yet of the attempts before; `claim` keeps others out of the folder until `close`."""
        self._run_dir, self._machine, self._performance = Path(run_dir), machine, performance
        self._claim = claim or ExitStack()
        self._is_main = is_main
        self._status = Status()
        self._file: int | None = None

    def begin(self, step: int) -> None:
        """Note that the run begins, or goes on, after `step` steps.

        Raises:
            TrainingError: The latest `MOST_DEATHS` attempts died in the same step.
        """
        if not self._is_main:
            return
        former = self._continue()
        deaths = self._status.deaths
        self._status = replace(self._status, state="running", step=step, attempts=former.attempts + 1)
        if len(deaths) == MOST_DEATHS and len(set(deaths)) == 1:
            # The next attempt counts anew: by then this was read, and perhaps the cause removed.
            self._status = replace(self._status, deaths=())
            reason = f" (the last time: {former.reason})" if former.reason else ""
            error = TrainingError(
                f"the run died in step {deaths[0]} {MOST_DEATHS} times in a row{reason}, and would do so again; look "
                "at the log, and at the memory and disk of the machine, and then type the same command once more. "
                f"What was reached by step {step} is kept."
            )
            self.fail(str(error), is_final=True)
            raise error
        _write_status(self._run_dir, self._status)

    def at(self, step: int) -> None:
        """Note that `step`, counted from 1, begins; costs microseconds."""
        if self._file is not None:
            with suppress(OSError):  # a full disk is for the checkpoint to tell
                os.pwrite(self._file, b"%*d" % (_WIDTH, step), 0)

    def fell_back(self, performance: str) -> None:
        """Note that the run, which has begun, is made fast in another way than was chosen, and why."""
        self._status = replace(self._status, performance=performance)
        self._end(self._status)

    def fail(self, reason: str, *, is_final: bool = False) -> None:
        """Note why the run ends; may be called from any thread, also where the run goes on to die."""
        if self._is_main and self._file is None:
            self._continue()
        self._end(replace(self._status, state="failed", reason=mask(reason), is_final=is_final))

    def end(self, state: Literal["finished", "stopped"], step: int) -> None:
        """Note that the run ended as it should, after `step` steps."""
        self._end(replace(self._status, state=state, step=step, deaths=()))

    def close(self) -> None:
        """Let others have the folder: nothing more is written to it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._claim.close()

    def _continue(self) -> Status:
        """Take over from the attempt before, whose status is returned, and begin a file of steps."""
        former = read_status(self._run_dir) or Status()
        deaths = former.deaths
        if former.state in ("finished", "stopped"):
            deaths = ()
        elif (step := _begun_step(self._run_dir)) is not None:
            deaths = (*deaths, step)[-MOST_DEATHS:]
        self._status = Status(
            step=former.step,
            attempts=former.attempts,
            deaths=deaths,
            machine=self._machine,
            performance=self._performance,
        )
        with suppress(OSError):
            self._file = os.open(self._run_dir / STEP_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        return former

    def _end(self, status: Status) -> None:
        if not self._is_main or not self._run_dir.is_dir():
            return
        try:
            _write_status(self._run_dir, status)
        except OSError as error:
            what = f"{status.state}: {status.reason}" if status.reason else status.state
            logger.error(
                "%s cannot be written (%s); it should say that the run has %s",
                self._run_dir / STATUS_FILE,
                error.strerror,
                what,
            )


def _write_status(run_dir: Path, status: Status) -> None:
    file, values = run_dir / STATUS_FILE, asdict(status)
    try:
        storage.write_json(file, values)
    except OSError:
        if not file.exists():
            raise
        storage.write_json_in_place(file, values)  # a full disk has no room for a second file


def _begun_step(run_dir: Path) -> int | None:
    """The step in which the former attempt was, if it was in any."""
    try:
        return int(storage.read_file(run_dir / STEP_FILE))
    except (OSError, ValueError):
        return None
