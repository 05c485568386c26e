"""The output of a shell command as a file: watched, checked, and asked for again where it breaks off."""

import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import IO

from unetdist import retries
from unetdist.errors import SourceError

PIECE = 2**20

NOT_FOUND = {126, 127}
"""Exit codes by which a shell says that there is no such command, or that it cannot be executed."""

_WATCHED = 'exec 3<&0 </dev/null; { read -r _ <&3; kill -9 0; } >&- 2>&- & exec 3<&-; exec /bin/sh -c "$1"'
"""Runs the command beside a watch that kills its group once the other end of its input is closed: the kernel does that
however this process ends, and a command that hangs would else outlive it."""


def pieces(command: str, start: int = 0) -> Iterator[bytes]:
    """What `command` prints from byte `start` on.

    Where it fails, or is silent for `retries.STALL_S`, it is run again until it has given nothing new for
    `retries.RETRY_S`: that is an `UnreachableError`. A command that does not exist is a `SourceError` at once.
    """
    at = start
    output: Generator[bytes] | None = None

    def next_piece() -> bytes:
        nonlocal output
        if output is None:
            output = _output(command, at)
        try:
            return next(output, b"")
        except BaseException:
            output = None
            raise

    try:
        while piece := retries.retry(command, next_piece):
            at += len(piece)
            yield piece
    finally:
        if output is not None:
            output.close()


class CommandError(Exception):
    """How a command failed."""


def _output(command: str, start: int) -> Generator[bytes]:
    """What one run of the command prints from byte `start` on, never an empty piece."""
    with tempfile.TemporaryFile() as complaints:
        # A session of its own, so that all that the shell started can be ended.
        process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHED, "sh", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=complaints, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdout as stdout:
                for piece in _watched(stdout):
                    if given := piece[start:]:
                        yield given
                    start = max(0, start - len(piece))
            code = process.wait(retries.STALL_S)
        except subprocess.TimeoutExpired:
            raise CommandError(f"did not end within {retries.STALL_S:g} s of its last byte") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.stdin.close()
            process.wait()
        if code:
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip().splitlines()
            why = f"ended with exit code {code}" + (f" ({retries.mask(said[-1])[:300]})" if said else "")
            if code in NOT_FOUND:
                raise SourceError(
                    f"the command {why}; install it, or correct it.", source=retries.mask(command)
                )
            raise CommandError(why)


def _watched(stdout: IO[bytes]) -> Iterator[bytes]:
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while selector.select(retries.STALL_S):
            piece = os.read(stdout.fileno(), PIECE)
            if not piece:
                return
            yield piece
        raise CommandError(f"printed nothing for {retries.STALL_S:g} s")
