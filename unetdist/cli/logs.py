"""The terminal: log lines, progress with times, errors without tracebacks."""

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from unetdist.cli.credentials import mask
from unetdist.errors import UnetdistError, one_line, printable, shown

logger = logging.getLogger("unetdist")


class PlainConsole(Console):
    """A console that prints names literally: no emoji codes, no control characters."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, emoji=False)

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """Render like the library, without control sequences."""
        return super().render_str(printable(text), **kwargs)


console = PlainConsole(stderr=True, soft_wrap=True)

# Seconds between progress lines where there is no terminal (log files, CI).
PLAIN_PROGRESS_EVERY_S = 15.0


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

# Words in the errors of torch's collectives.
BACKENDS = ("/gloo/", "[Gloo]", "NCCL")


class _Formatter(logging.Formatter):
    """Adds the level to warnings and errors, and the rank in a run of several processes."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record.args = tuple(map(shown, record.args))
        text = mask(printable(super().format(record)))
        return text if record.levelno <= logging.INFO else f"{self._prefix}{record.levelname.lower()}: {text}"


class _ScreenHandler(logging.Handler):
    """Prints above a progress bar, and each message in one piece, so that commands in it can be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno, "")
        try:
            console.print(Text(self.format(record), style=style), soft_wrap=True)
        except Exception:
            self.handleError(record)


def set_up_logging(*, rank: int = 0, world_size: int = 1) -> None:
    """Log to stderr: everything from rank 0, warnings from the others, with the rank as prefix."""
    handler = _ScreenHandler() if console.is_terminal else logging.StreamHandler()
    handler.setFormatter(_Formatter(f"[rank {rank}] " if world_size > 1 else ""))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)


# The display that is shown now; `progress` inside of another one adds a task to it.
_shown: list["_Screen"] = []


class ProgressBar:
    """The progress of `progress`; this base class shows nothing."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more of the total as done; `note` is shown next to the bar."""


class _ScreenBar(ProgressBar):
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._bar.update(self._task, advance=amount, note=one_line(note))


class _Screen(Progress):
    """A line of the innermost of the tasks that are going on."""

    # Log lines of other threads overwrite each other when the number of lines changes under them.
    def get_renderables(self) -> Iterator[Table]:
        """Return the table of the newest task."""
        yield self.make_tasks_table(self.tasks[-1:])


class _StatusColumn(ProgressColumn):
    """The numbers to the right of a bar."""

    def render(self, task: Task) -> Text:
        total = None if task.total is None else int(task.total)
        return Text(_status(int(task.completed), total, task.elapsed or 0, task.time_remaining, task.fields["note"]))


class _LogBar(ProgressBar):
    def __init__(self, description: str, total: int | None, completed: int) -> None:
        self._description, self._total, self._first = description, total, completed
        self._done = completed
        self._began = self._last = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last < PLAIN_PROGRESS_EVERY_S:
            return
        self._last, elapsed = now, now - self._began
        rate = (self._done - self._first) / max(elapsed, 1e-9)
        left = (self._total - self._done) / rate if self._total and rate else None
        logger.info("%s: %s", self._description, _status(self._done, self._total, elapsed, left, note))


def _status(done: int, total: int | None, elapsed: float, left: float | None, note: str) -> str:
    """`60/100, 1:05 elapsed, 18:32 left, loss 0.5`: counts, seconds as times, and a note."""
    parts = [f"{done}/{total}" if total else f"{done}", f"{_clock(elapsed)} elapsed"]
    if left is not None and done != total:
        parts.append(f"{_clock(left)} left")
    return ", ".join([*parts, note] if note else parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def progress(
    description: str, total: int | None, *, completed: int = 0, enabled: bool = True, stays: bool = False
) -> Iterator[ProgressBar]:
    """A progress bar on a terminal, a log line now and then elsewhere, nothing if `enabled` is false.

    The bar vanishes in the end, because a result follows, unless it `stays`.
    """
    if not enabled:
        yield ProgressBar()
    elif not console.is_terminal:
        yield _LogBar(description, total, completed)
    else:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), _StatusColumn(Column(no_wrap=True)))
        outer = _shown[0] if _shown else None
        with nullcontext(outer) if outer else _Screen(*columns, console=console, transient=not stays) as bar:
            task = bar.add_task(one_line(description), total=total, completed=completed, note="")
            _shown[:] = [bar]
            try:
                yield _ScreenBar(bar, task)
            finally:
                if outer:
                    bar.remove_task(task)
                else:
                    _shown.clear()


def run_script(main: Callable[[], int | None]) -> None:
    """Run a launch script's `main` and exit: 0 or its return value, 1 after a user's error, 130 after Ctrl-C.

    Errors meant for the user are printed as one readable block; anything else keeps its traceback.
    """
    try:
        sys.exit(main() or 0)
    except (UnetdistError, OSError, RuntimeError) as error:
        if (text := _readable(error)) is None:
            raise
        prefix = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
        # In one piece, so that lines of several processes stay apart.
        print(f"{prefix}error: {mask(printable(text))}\n", end="", file=sys.stderr, flush=True)
        # The launcher's report ends with the cause; of a lost connection, the other process has it.
        if not isinstance(error, RuntimeError):
            tell_launcher(f"error: {text}")
        sys.exit(1)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def _readable(error: Exception) -> str | None:
    """A message that says what the user can do; None if the traceback says more."""
    if isinstance(error, UnetdistError):
        return str(error)
    if isinstance(error, OSError):
        where = error.filename or "a file"
        if error.errno in NO_ROOM:
            return f"{where} cannot be written ({error.strerror}); make room on its disk, and start the command again."
        if error.errno == errno.EMFILE:
            return f"{where} cannot be opened ({error.strerror}); raise the limit, for example with ulimit -n 4096."
    elif any(backend in str(error) for backend in BACKENDS):
        return (
            "the connection to another process of the run is lost: it ended, or its machine or network is gone. Its "
            f"last messages say why; the same command continues the run. ({str(error).splitlines()[0]})"
        )
    return None


def tell_launcher(text: str) -> None:
    """Write the cause into the file that torchrun gives each process, so that its report ends with it."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": mask(text), "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
