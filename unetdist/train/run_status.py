"""status.json of a run: how far it came and how it ended, for people and for whatever restarts it."""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from unetdist.cli import json_records
from unetdist.cli.credentials import mask
from unetdist.cli.json_records import Count
from unetdist.cli.logs import logger
from unetdist.storage import files as storage

STATUS_FILE = "status.json"

# Exit code after a signal to stop (EX_TEMPFAIL of sysexits.h): the same command continues.
STOPPED_EARLY = 75


@dataclass(frozen=True, kw_only=True)
class Status:
    """The content of `status.json`.

    Attributes:
        state: `finished`: all steps are done. `stopped`: a signal asked for it; the same command continues. `failed`:
            it ended with the error `reason`. `running`: it runs, or was killed.
        step: steps done; for a run that is running, steps done when it started.
        reason: error message of a run that failed.
        is_final: whether the same command would fail again, for example because a setting is wrong.
        attempts: number of times the run was started.
        machine: processes and devices of the latest attempt.
        performance: the fast path that was chosen, or why there is none.
    """

    state: Literal["running", "finished", "stopped", "failed"] = "running"
    step: Count = 0
    reason: str = ""
    is_final: bool = False
    attempts: Count = 0
    machine: str = field(default="", compare=False)
    performance: str = field(default="", compare=False)


def read_status(run_dir: str | os.PathLike[str]) -> Status | None:
    """The status of a run, or None if it has none that can be read."""
    try:
        values = json_records.parse(storage.read_file(Path(run_dir) / STATUS_FILE))
        if isinstance(values, dict):
            values.pop("deaths", None)  # older versions counted crashes
        return json_records.build(Status, values)
    except (OSError, ValueError):
        return None


class RunStatus:
    """Keeps `status.json` up to date during one start of the run; ranks other than 0 write nothing."""

    def __init__(self, run_dir: Path, *, is_main: bool, machine: str = "", performance: str = "") -> None:
        """Continue the count of starts of the run in this folder."""
        self.run_dir, self._is_main = run_dir, is_main
        former = (read_status(run_dir) if is_main else None) or Status()
        self._status = Status(step=former.step, attempts=former.attempts, machine=machine, performance=performance)

    def begin(self, step: int) -> None:
        """Record that the run starts, or resumes, after `step` steps."""
        if self._is_main:
            self._status = replace(self._status, step=step, attempts=self._status.attempts + 1)
            _write_status(self.run_dir, self._status)

    def fell_back(self, performance: str) -> None:
        """Record that the running attempt uses another fast path than was chosen, and why."""
        self._status = replace(self._status, performance=performance)
        self._end(self._status)

    def fail(self, reason: str, *, is_final: bool = False) -> None:
        """Record why the run ends. Any thread may call it, also in a process that is about to be killed."""
        self._end(replace(self._status, state="failed", reason=mask(reason), is_final=is_final))

    def end(self, state: Literal["finished", "stopped"], step: int) -> None:
        """Record that the run ended without an error, after `step` steps."""
        self._end(replace(self._status, state=state, step=step))

    def _end(self, status: Status) -> None:
        if not self._is_main or not self.run_dir.is_dir():
            return
        try:
            _write_status(self.run_dir, status)
        except OSError as error:
            file, told = self.run_dir / STATUS_FILE, f"{status.state}: {status.reason}".removesuffix(": ")
            logger.error("%s cannot be written (%s); it should say: %s", file, error.strerror, told)


def _write_status(run_dir: Path, status: Status) -> None:
    file, values = run_dir / STATUS_FILE, asdict(status)
    try:
        storage.write_json(file, values)
    except OSError:
        if not file.exists():
            raise
        # a full disk has no room for a second file
        storage.write_json_in_place(file, values)
