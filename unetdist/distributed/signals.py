"""Signals as requests to stop, which the program obeys between two steps."""

import atexit
import ctypes
import mmap
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType

from unetdist import STARTED_BY
from unetdist.cli.logs import logger
from unetdist.errors import LaunchError

# Signals within this time of the first are the same request: Ctrl-C reaches a rank from the terminal and from the
# launcher, and on SLURM SIGTERM comes twice.
SECOND_SIGNAL_AFTER_S = 1.0

# Prefixes of variables that only launchers set; a user's file for Accelerate, or a shell, may set others.
LAUNCHER_VARIABLES = ("ACCELERATE_DYNAMO_", "TORCHELASTIC_")

PR_SET_PDEATHSIG = 1


def follow_launcher() -> None:
    """On Linux, make the kernel send this process a SIGTERM when its launcher ends.

    Raises:
        LaunchError: the launcher has ended already, while this process was loading its libraries.
    """
    # A launcher of one process passes no signal on, and a killed one cannot: training would continue unnoticed. A
    # process that was started by a shell is left alone, because users may want it to outlive the shell.
    if sys.platform == "linux" and is_launched():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if _has_lost_launcher():
            raise LaunchError(
                f"the launcher (process {STARTED_BY[1]}) that started this process has ended, so this one ends too; "
                "start again with the same command, under `nohup` or `setsid` if it should outlive your shell."
            )


def is_launched() -> bool:
    """Whether Accelerate's launcher or torchrun started this process, alone or with others."""
    return any(name.startswith(LAUNCHER_VARIABLES) for name in os.environ)


def _has_lost_launcher() -> bool:
    return is_launched() and STARTED_BY[0] == os.getpid() and STARTED_BY[1] != os.getppid()


# Signals that ask a run to stop.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def leave_to_parent(is_over: Callable[[], object], exit_code: int) -> None:
    """In a child process, ignore the signals that a launcher or a terminal sends to the whole process group.

    The parent acts on them. Once `is_over` returns true, SIGTERM ends the child with `exit_code`: at exit Python sends
    it to daemonic children, and waits for them.
    """

    def end(*_: object) -> None:
        if is_over():
            os._exit(exit_code)

    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


class StopSignal(AbstractContextManager["StopSignal"]):
    """Turns SIGTERM, SIGUSR1 and SIGINT into a request to stop; a second signal exits at once.

    `on_second` exits, with the exit code that it gets; None raises KeyboardInterrupt in the main thread instead.
    """

    # Python's C handler wakes a thread, so that a second signal works even while the main thread waits in a collective.
    # Launchers signal whole process groups. Forked children (loader workers) therefore ignore these signals while the
    # watch lasts: the last step needs them.

    def __init__(self, on_second: Callable[[int], object] | None = os._exit) -> None:
        self.received: int | None = None
        self._requested_elsewhere = False
        self._since = 0.0
        self._on_second = on_second
        self._over = mmap.mmap(-1, 1)  # shared with forked children; 1 once the watch is over
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self._former = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        self._former_fd = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signal-watch", daemon=True).start()
        os.register_at_fork(after_in_child=self._become_child)
        atexit.register(self.close)  # runs before multiprocessing's own, which joins the children

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.received is not None

    @property
    def requested_anywhere(self) -> bool:
        """Whether this process knows of a request to stop, to itself or to another process."""
        return self.requested or self._requested_elsewhere

    @property
    def is_orphan(self) -> bool:
        """Whether the launcher has ended, so that it was the kernel that sent the signal."""
        return _has_lost_launcher()

    def note_elsewhere(self) -> None:
        """Note that another process was asked to stop."""
        if not self.requested_anywhere:
            logger.info("another process was asked to stop: stopping within a few steps, with a checkpoint")
            self._requested_elsewhere = True

    def close(self) -> None:
        """Restore the former signal handlers."""
        if self._former:
            signal.set_wakeup_fd(self._former_fd)
            for number, handler in self._former.items():
                signal.signal(number, handler)
            self._former = {}
            self._over[0] = 1
            self._writing.close()
            atexit.unregister(self.close)

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _is_second(self) -> bool:
        """Whether a signal that comes now is not the first one once more."""
        return self.received is not None and time.monotonic() - self._since >= SECOND_SIGNAL_AFTER_S

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Without a Python handler there would be no wake-up byte.
        if self._on_second is None and self._is_second:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        with self._reading:
            while data := self._reading.recv(64):
                for number in data:
                    self._note(number)

    def _note(self, number: int) -> None:
        if number not in STOP_SIGNALS:
            return
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            # Not a warning, because one line, of rank 0, is enough.
            logger.info("%s: stopping within a few steps, with a checkpoint; a second one exits at once", name)
        elif self._on_second is not None and self._is_second:
            sys.stderr.write(f"{signal.Signals(number).name} again: exiting at once\n")
            self._on_second(128 + number)

    def _become_child(self) -> None:
        if self._former:
            self._former = {}
            leave_to_parent(lambda: self._over[0], 128 + signal.SIGTERM)
