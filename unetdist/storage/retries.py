"""Trying again what may pass: patient, bounded in time, silent about secrets.

Connections that are refused or cut, answers of 5xx or 429, and servers that send nothing for `STALL_S` are met by
trying again, with growing pauses, until `RETRY_S` are over; then comes an `UnreachableError`.
"""

import errno
import random
import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from unetdist.cli.credentials import mask
from unetdist.cli.logs import logger
from unetdist.errors import ConfigError, SourceError, UnetdistError

RETRY_S = 300.0
"""How long an operation is tried again before it is an error; `set_retry_s` changes it."""
STALL_S = 30.0
"""A server that sends no byte for so long is asked again."""

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 15.0
TELL_AFTER = 4
"""Attempts after which the log tells why a run waits."""

LASTING_ERRNOS = {
    *(
        errno.EINVAL,
        errno.EPERM,
        errno.EACCES,
        errno.ENOSYS,
        errno.ENAMETOOLONG,
        errno.EMSGSIZE,
        errno.EREMCHG,
    ),
    *(errno.EISDIR, errno.ENOTDIR, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
}
PASSING_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505}
"""Answers of HTTP that may be others later."""

T = TypeVar("T")


class UnreachableError(SourceError):
    """A server that did not give what it was asked for until the deadline: not the fault of one sample."""


def set_retry_s(seconds: float) -> None:
    """Set how long this process, and those forked from it later, try again before they give up."""
    global RETRY_S
    RETRY_S = seconds


def retry(url: str, action: Callable[[], T], *, what: str = "read") -> T:
    """The result of `action`, tried again while what went wrong may pass; `what` is done to `url`, for the message."""
    began = time.monotonic()
    for attempt in count(1):
        try:
            return action()
        except (UnetdistError, TypeError, AttributeError):  # The latter two are mistakes of a program.
            raise
        except ImportError as error:
            raise ConfigError(
                f"{mask(url)}: {error}; install it, or copy the data set to a local folder."
            ) from None
        except Exception as error:
            # `from None` throughout: a chained traceback would print what is masked here.
            if remedy := _remedy(error):
                raise SourceError(f"cannot be {what}: {remedy}.", source=mask(url)) from None
            if isinstance(error, FileNotFoundError) or status_of(error) in (404, 410):
                raise FileNotFoundError(errno.ENOENT, "No such file", mask(url)) from None
            cause = f"{type(error).__name__}: {mask(error) or 'no answer in time'}"[:400]
            if not _may_pass(error):
                raise SourceError(
                    f"cannot be {what} ({cause}); check the address and your permission.", source=mask(url)
                ) from None
            waited = time.monotonic() - began
            # Jitter from the system's generator, so that neither ranks nor their workers come back in step.
            pause = random.SystemRandom().uniform(0.5, 1) * min(
                FIRST_PAUSE_S * 2 ** (attempt - 1), MAX_PAUSE_S
            )
            if waited + pause > RETRY_S:
                raise UnreachableError(
                    f"could not be {what} in {attempt} attempts within {waited:.0f} s (last: {cause}); check the "
                    "server and the connection, then run the same command again; data.retry_s of a run sets how long "
                    "to wait.",
                    source=mask(url),
                ) from None
            if attempt == TELL_AFTER:
                logger.warning("%s: %s; trying again for up to %.0f s", mask(url), cause, RETRY_S)
        time.sleep(pause)
    raise AssertionError  # count() does not end.


def _remedy(error: Exception) -> str:
    """A remedy for errors that retrying cannot mend; empty if none is known."""
    # aiohttp, requests and httpx each have a class of that name; fsspec calls it a missing file.
    if "TooManyRedirects" in (type(error).__name__, type(error.__cause__).__name__):
        return "the server redirects in a circle; check the address"
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return (
            "this process has as many files open as it may (ulimit -n); raise the limit, for example with ulimit -n "
            "4096, or lower data.num_workers"
        )
    return ""


def _may_pass(error: Exception) -> bool:
    status = status_of(error)
    if status is not None:
        return status in PASSING_STATUSES
    if isinstance(error, OSError) and error.errno in LASTING_ERRNOS:
        return False
    lasting = isinstance(error, (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError))
    mistaken = isinstance(error, (ValueError, NotImplementedError))
    return not lasting and not mistaken and "Credentials" not in type(error).__name__


def status_of(error: BaseException) -> int | None:
    """The answer of HTTP behind an error of aiohttp (status), gcsfs (code), huggingface_hub or botocore (response)."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:
        status = getattr(response, "status_code", None)
    else:
        status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) and 400 <= status < 600 else None
