"""Retries transient I/O errors with backoff. Never logs credentials.

Refused or cut connections, the HTTP answers 5xx and 429, and servers that send nothing for `STALL_S` are tried again
with growing pauses. After `RETRY_S` the error is an `UnreachableError`.
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

# Seconds for which an operation is tried again; `set_retry_s` changes it.
RETRY_S = 300.0
# Seconds without a byte after which a server is asked again.
STALL_S = 30.0

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 15.0
# Failed attempts after which the log says why the run waits.
TELL_AFTER = 4

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
# The same request would fail in the same way again.
LASTING_ERRNOS = {
    *(errno.EINVAL, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.EREMCHG, errno.EROFS, errno.EMFILE)
}
LASTING_ERRORS = (
    *(PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError),
    *(ValueError, NotImplementedError),
)
# Words in the names of errors of botocore and aiohttp.
LASTING_NAMES = ("Credentials", "Redirects")
# HTTP answers that may be different later.
TRANSIENT_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505}

T = TypeVar("T")


class UnreachableError(SourceError):
    """A server did not deliver before the deadline; no single sample is to blame."""


def set_retry_s(seconds: float) -> None:
    """Set for how long this process, and those forked from it later, try again before they give up."""
    global RETRY_S
    RETRY_S = seconds


def retry(url: str, action: Callable[[], T], *, what: str = "read") -> T:
    """The result of `action`, repeated after transient errors. Messages say that `url` cannot be `what`."""
    start = time.monotonic()
    for attempt in count(1):
        try:
            return action()
        except (UnetdistError, TypeError, AttributeError):  # the latter two are bugs
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise  # the disk of this machine, whose owner knows what to remove
            # `from None` throughout: a chained traceback would print the credentials that are masked here.
            cause = f"{type(error).__name__}: {mask(error) or 'no answer in time'}"[:400]
            if (lasting := _lasting(error, url, what, cause)) is not None:
                raise lasting from None
            waited = time.monotonic() - start
            # Jitter from the system's generator, so that ranks and their workers do not return in step.
            jitter = random.SystemRandom().uniform(0.5, 1)
            pause = jitter * min(FIRST_PAUSE_S * 2 ** (attempt - 1), MAX_PAUSE_S)
            if waited + pause > RETRY_S:
                raise UnreachableError(
                    f"could not be {what} in {attempt} attempts within {waited:.0f} s (last: {cause}); check the "
                    "server and the connection, then run the same command again. data.retry_s sets how long a run "
                    "waits.",
                    source=mask(url),
                ) from None
            if attempt == TELL_AFTER:
                logger.warning("%s: %s; trying again for up to %.0f s", mask(url), cause, RETRY_S)
        time.sleep(pause)
    raise AssertionError  # count() does not end


def _lasting(error: Exception, url: str, what: str, cause: str) -> Exception | None:
    """The error to raise where trying again would not help; None for a transient one."""
    if isinstance(error, ImportError):
        return ConfigError(f"{mask(url)}: {error}; install it, or copy the data set to a local folder.")
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "No such file", mask(url))
    if status is not None:
        is_lasting = status not in TRANSIENT_STATUSES
    else:
        is_lasting = (
            isinstance(error, LASTING_ERRORS)
            or (isinstance(error, OSError) and error.errno in LASTING_ERRNOS)
            or any(word in type(error).__name__ for word in LASTING_NAMES)
        )
    text = f"cannot be {what} ({cause}); check the address and your permission."
    return SourceError(text, source=mask(url)) if is_lasting else None


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of aiohttp (status), gcsfs (code), huggingface_hub or botocore (response)."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:
        status = getattr(response, "status_code", None)
    else:
        status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) and 400 <= status < 600 else None
