"""The output of a shell command as a file: watched, checked, and asked for again where it breaks off."""

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from unetdist import retries
from unetdist.errors import SourceError

ATTEMPTS = 3
"""A command does not say whether its failure may pass."""
PIECE = 2**20


def pieces(command: str, start: int = 0) -> Iterator[bytes]:
    """What `command` prints from byte `start` on; `SourceError` where it fails or is silent for `retries.STALL_S`."""
    at = start
    for attempt in range(1, ATTEMPTS + 1):
        skip = at
        try:
            for piece in _output(command):
                given = piece[skip:]
                skip -= len(piece) - len(given)
                if given:
                    at += len(given)
                    yield given
            return
        except _CommandFailedError as error:
            if attempt == ATTEMPTS:
                raise SourceError(
                    f"the command {error} in each of {ATTEMPTS} attempts; run it in a shell to see what it needs.",
                    source=retries.mask(command),
                ) from None
        time.sleep(retries.FIRST_PAUSE_S * 2**attempt)


class _CommandFailedError(Exception):
    """How a command failed, as the rest of a sentence."""


def _output(command: str) -> Iterator[bytes]:
    with tempfile.TemporaryFile() as complaints:
        # A session of its own, so that all that the shell started can be ended.
        process = subprocess.Popen(
            command, shell=True, stdout=subprocess.PIPE, stderr=complaints, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            with process.stdout as stdout:
                yield from _watched(stdout)
            code = process.wait(retries.STALL_S)
        except subprocess.TimeoutExpired:
            raise _CommandFailedError(f"did not end within {retries.STALL_S:g} s of its last byte") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code:
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip().splitlines()
            last = f" ({retries.mask(said[-1])[:300]})" if said else ""
            raise _CommandFailedError(f"ended with exit code {code}{last}")


def _watched(stdout: IO[bytes]) -> Iterator[bytes]:
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while selector.select(retries.STALL_S):
            piece = os.read(stdout.fileno(), PIECE)
            if not piece:
                return
            yield piece
        raise _CommandFailedError(f"printed nothing for {retries.STALL_S:g} s")
