"""Restarts a launcher of training processes until the run ends: what `accelerate launch` cannot do for itself.

It restarts processes, not itself: a launcher that was killed, a machine that comes back, and the launchers of other
machines that fail meanwhile need somebody outside. One supervisor runs on each machine; they know of each other only by
the run's folder, which all of them read.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from unetdist.cli.logs import logger
from unetdist.cli.settings import read_yaml
from unetdist.distributed.signals import PR_SET_PDEATHSIG
from unetdist.errors import ConfigError
from unetdist.train.run_status import STOPPED_EARLY, Status, read_status, status_time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""What asks to stop; the launcher gets SIGTERM for each, for SIGUSR1 would kill it."""

LONGEST_PAUSE_S = 60.0
"""Pauses before a restart double up to this; a launcher that ran for as long begins with short ones again."""

MOST_FALSE_STARTS = 3
"""Launches, one after the other, that end soon (`LONGEST_PAUSE_S`) without a run: a wrong word on the command line."""

LONGEST_ABSENCE_S = 3600.0
"""Without a run that begins, such as while another machine does not come back: then give up."""

LAST_WORDS_S = 30.0
"""For what a launcher left behind to end, once it was told to."""

SHUTDOWN_S = 300
"""For the checkpoint after a signal; torch's launcher kills its processes after 30 s unless told otherwise."""

PR_SET_CHILD_SUBREAPER = 36
_DEFAULTS = {"runs_dir": "runs", "name": "run"}
"""As in `unetdist.train.config`, which takes seconds to load."""


def run_dir_of(command: Sequence[str]) -> Path:
    """The run folder of a command that contains launch/train.py and its settings.

    Raises:
        ConfigError: There is no train.py in it, or its `--config` cannot be read.
    """
    script = next((number for number, word in enumerate(command) if Path(word).name == "train.py"), None)
    if script is None:
        raise ConfigError(
            f"the command to supervise ({' '.join(command)}) does not run launch/train.py; type `python "
            "launch/supervise.py -- accelerate launch ... launch/train.py --config ...`."
        )
    given = dict(_DEFAULTS)
    words = list(command[script + 1 :])
    for number, word in enumerate(words):
        name, _, value = word.removeprefix("--").partition("=")
        value = value or (words[number + 1] if number + 1 < len(words) else "")
        if word.startswith("--config"):
            given |= {key: str(value) for key, value in read_yaml(Path(value)).items() if key in given}
        elif word.startswith("--") and name in given:
            given[name] = value
    return Path(given["runs_dir"]) / given["name"]


class Supervisor:
    """Runs a command again and again until the run in `run_dir` has ended."""

    def __init__(
        self, command: Sequence[str], run_dir: Path, *, max_restarts: int, first_pause_s: float = 1.0
    ) -> None:
        self.command, self.run_dir, self.max_restarts = list(command), run_dir, max_restarts
        self.first_pause_s = first_pause_s
        self._num_signals = 0
        self._launcher: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """To the end: 0 where the run is finished, 75 where it was stopped and can go on, 1 where it failed."""
        for number in SIGNALS:
            signal.signal(number, self._pass_on)
        if sys.platform == "linux":
            # What outlives a launcher then becomes a child of this process, which can wait for it and end it.
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        restarts = false_starts = 0
        absent_s = 0.0
        pause_s = self.first_pause_s
        while True:
            before = status_time(self.run_dir)
            began = time.monotonic()
            code = self._launch()
            lasted_s = time.monotonic() - began
            status = self._status_since(before)
            if (verdict := self._verdict(code, status)) is not None:
                return verdict
            false_starts = false_starts + 1 if status is None and lasted_s < LONGEST_PAUSE_S else 0
            absent_s = 0.0 if status else absent_s + lasted_s
            is_absent = false_starts >= MOST_FALSE_STARTS or absent_s >= LONGEST_ABSENCE_S
            if restarts >= self.max_restarts or is_absent:
                why = ", for the run did not even begin" if is_absent else ""
                logger.error("giving up after %d restart(s)%s: %s", restarts, why, _describe(code, status))
                return 1
            restarts += 1
            pause_s = self.first_pause_s if lasted_s >= LONGEST_PAUSE_S else pause_s
            logger.warning(
                "restart %d of %d in %.0f s: %s",
                restarts,
                self.max_restarts,
                pause_s,
                _describe(code, status),
            )
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            # Looked at once more: on a file system of several machines, news take a while.
            status = self._status_since(before)
            if self._num_signals or status:
                verdict = self._verdict(code, status)
                if verdict is not None:
                    return verdict

    def _status_since(self, before: int) -> Status | None:
        """What the run came to, if anything was written since the time `before`."""
        return read_status(self.run_dir) if status_time(self.run_dir) != before else None

    def _verdict(self, code: int, status: Status | None) -> int | None:
        """The exit code that follows from how a launch ended; None: restart."""
        state = status.state if status else None
        if code == 0 or state == "finished":
            return 0
        if status is not None and state == "failed" and status.is_final:
            logger.error("not restarted, for it would fail again: %s", status.reason)
            return 1
        return STOPPED_EARLY if self._num_signals or state == "stopped" else None

    def _launch(self) -> int:
        """Run the command to its end, and the end of all that it started; its exit code, negative for a signal."""
        environment = {"PET_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S), **os.environ}
        self._launcher = subprocess.Popen(
            self.command, env=environment, start_new_session=True, preexec_fn=_end_with_parent
        )
        if self._num_signals:  # one came while the process was being made
            self._tell()
        code = self._launcher.wait()
        self._launcher = None
        self._end_the_rest()
        return code

    def _end_the_rest(self) -> None:
        """Wait for what the launcher left, which gets to know of its end; then insist."""
        allowed_s = SHUTDOWN_S if self._num_signals else LAST_WORDS_S
        for action, wait_s in (
            (None, allowed_s),
            (signal.SIGTERM, LAST_WORDS_S),
            (signal.SIGKILL, LAST_WORDS_S),
        ):
            rest = psutil.Process().children(recursive=True)
            if action is not None:
                for process in rest:
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(action)
            psutil.wait_procs(rest, timeout=wait_s)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        self._tell()

    def _tell(self) -> None:
        """The launcher's group, for a launcher of one process tells it nothing."""
        if self._launcher is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._launcher.pid, signal.SIGTERM)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._num_signals and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))


def _end_with_parent() -> None:
    """In the launcher: SIGTERM when the supervisor is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _describe(code: int, status: Status | None) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    reason = f": {status.reason}" if status and status.reason else ""
    return (
        f"the launcher {how}, the run stood at step {status.step}{reason}"
        if status
        else f"the launcher {how}"
    )
