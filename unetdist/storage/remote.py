"""Files behind URLs (s3, gs, hf, http, https, file) through fsspec, from any process and thread.

A missing file is a `FileNotFoundError` and a refused one a `DataError`, both at once. Transient errors (refused or cut
connections, the HTTP answers 5xx and 429, servers that send nothing for `STALL_S`) are tried again with growing pauses;
after `RETRY_S` they are an `UnreachableError`. No message shows credentials.
"""

import errno
import os
import random
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from unetdist.cli.credentials import is_masked, mask
from unetdist.cli.logs import NO_ROOM, logger
from unetdist.errors import ConfigError, DataError, SourceError, UnetdistError
from unetdist.storage.files import write_atomic

# The protocols that are opened. fsspec knows others, and some of them read other URLs or run code.
SCHEMES = ("file", "http", "https", "s3", "s3a", "gs", "gcs", "hf")
# Bytes per request of a download: what is lost when a connection breaks.
PIECE = 16 * 2**20
# Bytes per second below which a ranged read counts as stalled.
SLOWEST = 2**16
UNLIMITED = sys.maxsize

# Seconds for which an operation is tried again; `set_retry_s` changes it.
RETRY_S = 300.0
# Seconds without a byte after which a server is asked again.
STALL_S = 30.0

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 15.0
# Failed attempts after which the log says why the run waits.
TELL_AFTER = 4

# The same request would fail in the same way again.
LASTING_ERRNOS = {
    errno.EINVAL, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.EREMCHG, errno.EROFS, errno.EMFILE
}  # fmt: skip
LASTING_ERRORS = (
    PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, ValueError, NotImplementedError
)  # fmt: skip
# Words in the names of errors of botocore and aiohttp.
LASTING_NAMES = ("Credentials", "Redirects")
# HTTP answers that may be different later.
TRANSIENT_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505}

T = TypeVar("T")
Sink = TypeVar("Sink", bound=IO[bytes])

_file_systems: dict[tuple[int, str, str], Any] = {}


class UnreachableError(SourceError):
    """A server did not deliver before the deadline; no single sample is to blame."""


class RangesUnsupportedError(SourceError):
    """The server sends whole files only."""


def is_url(location: object) -> bool:
    """Whether this is a URL, `scheme://...`, rather than a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(location)) is not None


def refusal(location: str) -> str | None:
    """Why a path or URL is not opened, with a remedy; None if it may be opened."""
    # An IPv6 host may hold two colons in a row.
    if "::" in re.sub(r"(?<=[/@])\[[0-9a-fA-F:.]+\]", "", location, count=1):
        return "'::' chains locations, which is refused; give the path or URL of the files themselves."
    if not is_url(location):
        return None
    if is_masked(location):
        return "its user, query or fragment is never saved; give the whole URL again."
    try:
        scheme = urlsplit(location).scheme
    except ValueError as error:
        return f"is not a valid URL ({error}); correct it."
    if scheme not in SCHEMES:
        return f"{scheme}:// is not supported; use a path, or one of {', '.join(SCHEMES)}."
    return None


def is_network(location: str) -> bool:
    """Whether a path or URL leads to a server."""
    return is_url(location) and urlsplit(location).scheme != "file"


def join(url: str, name: str) -> str:
    """The URL of `name` in the folder `url`, whose query (a signature) is kept; `name` itself if that is a URL."""
    if is_url(name):
        return name
    if "?" not in url:
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def read(url: str, *, most: int = UNLIMITED) -> bytes:
    """The whole file in one request; `DataError` if it is larger than `most` bytes."""

    def attempt() -> bytes:
        if _is_web(url):
            return _web_get(url, BytesIO(), most + 1).getvalue()  # a server may send without end
        if most == UNLIMITED:
            return bytes(_file_system(url).cat_file(url))
        return _read_range(url, 0, most + 1, None)

    data = retry(url, attempt)
    if len(data) > most:
        raise DataError(f"is larger than {most / 1e9:.1f} GB; cut it into parts.", source=mask(url))
    return data


def read_range(url: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on, fewer only at the end; `RangesUnsupportedError` if the server knows no ranges."""
    if size <= 0:
        return b""
    longest = STALL_S + size / SLOWEST
    deadline = time.monotonic() + max(longest, RETRY_S)

    def attempt() -> bytes:
        # Libraries watch their sockets only; this bounds the whole request, whatever they do.
        left = max(deadline - time.monotonic(), STALL_S)
        return _read_range(url, start, size, min(longest, left))

    return retry(url, attempt)


def size_of(url: str) -> int | None:
    """Bytes of the file; None if the server does not say."""
    size = retry(url, lambda: _file_system(url).info(url)["size"])
    return None if size is None else int(size)


def download(url: str, file: IO[bytes], *, most: int = UNLIMITED) -> None:
    """Write the file to `file`, from its beginning; no more than `most` bytes, even if there are more.

    A broken download continues after the last whole piece; from a server without ranges it starts again.
    """
    start = 0
    try:
        file.seek(0)
        while piece := read_range(url, start, min(PIECE, most - start)):
            file.write(piece)
            start += len(piece)
            if len(piece) < PIECE:
                break
        file.truncate()
    except RangesUnsupportedError:
        retry(url, lambda: _web_get(url, file, most))


def names_in(url: str) -> list[str]:
    """Sorted names of the files directly in a folder; empty if there is no such folder."""
    try:
        found = retry(url, lambda: _file_system(url).ls(url, detail=True))
    except FileNotFoundError:
        return []
    files = [entry["name"] for entry in found if entry["type"] == "file"]
    if _is_web(url):  # links; elsewhere "#" and "%" are letters of a name
        files = [unquote(urlsplit(name).path) for name in files]
    return sorted({name.rpartition("/")[2] for name in files} - {""})


def write(url: str, data: bytes | memoryview) -> None:
    """Write a file that readers see whole or not at all."""
    # A store shows an object only when it is whole; a disk needs a rename for that.
    if url.startswith("file:"):
        with write_atomic(_file_system(url)._strip_protocol(url)) as file:
            file.write(data)
    else:
        retry(url, lambda: _file_system(url).pipe_file(url, bytes(data)), what="written")


def upload(url: str, local: Path) -> None:
    """Copy the local file to `url`."""
    retry(url, lambda: _file_system(url).put_file(str(local), url), what="written")


def remove(url: str) -> None:
    """Remove a file if it exists."""
    with suppress(FileNotFoundError):
        retry(url, lambda: _file_system(url).rm_file(url), what="removed")


def _is_web(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https")


def _read_range(url: str, start: int, size: int, timeout: float | None) -> bytes:
    if _is_web(url):
        return _web_get(url, BytesIO(), size, start=start, timeout=timeout).getvalue()
    files = _file_system(url)
    # It takes an event loop to end a request from outside.
    limit = {"timeout": timeout} if files.async_impl and timeout else {}
    try:
        return bytes(files.cat_file(url, start=start, end=start + size, **limit))
    except Exception as error:
        if status_of(error) == 416:  # starts at or behind the end
            return b""
        raise


def _web_get(url: str, sink: Sink, size: int, *, start: int | None = None, timeout: float | None = None) -> Sink:
    """Fill `sink` with at most `size` bytes of the file, or of the range from `start` on; returns it."""
    from fsspec.asyn import sync

    files = _file_system(url)

    # Not fsspec's cat_file, which takes in a whole shard if the server ignores the range.
    async def get() -> None:
        session = await files.set_session()
        headers = {} if start is None else {"Range": f"bytes={start}-{start + size - 1}"}
        async with session.get(files.encode_url(url), headers=headers) as response:
            if start is not None and response.status == 416:
                return
            response.raise_for_status()
            if start is not None and response.status != 206:
                raise RangesUnsupportedError(
                    "the server sends whole files only (no ranges); set data.cache_gb to several times the size of a "
                    "shard, or copy the data set to a local folder.",
                    source=mask(url),
                )
            sink.seek(0)
            left = size
            async for piece in response.content.iter_any():
                sink.write(piece[:left])
                left -= len(piece)
                if left <= 0:
                    break
            sink.truncate()

    sync(files.loop, get, timeout=timeout)
    return sink


def _file_system(url: str) -> Any:
    """One per process and server: threads and connections of an asynchronous one do not survive a fork."""
    import fsspec

    if problem := refusal(url):  # fsspec would follow a chain, and import what a protocol names
        raise ConfigError(f"{mask(url)}: {problem}")
    # Threads and connections do not survive a fork, so that each process has its own.
    parts = urlsplit(url)
    key = os.getpid(), parts.scheme, parts.netloc
    if key not in _file_systems:
        # Without its listings the Hub would be asked for one with every read.
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": parts.scheme == "hf"}
        if _is_web(url):
            options |= {"client_kwargs": _web_settings()}
        elif parts.scheme in ("s3", "s3a"):
            timeouts = {"connect_timeout": STALL_S, "read_timeout": STALL_S}
            # botocore keeps 10 connections, fewer than the threads of a reader and of its prefetcher need.
            once = {"retries": {"total_max_attempts": 1}, "max_pool_connections": 64}
            options |= {"config_kwargs": {**timeouts, **once}}
        elif parts.scheme in ("gs", "gcs"):
            options |= {"session_kwargs": {"timeout": _web_settings()["timeout"]}}
        made = fsspec.core.url_to_fs(url, **options)[0]
        if hasattr(made, "retries"):
            made.retries = 1  # `retry` alone decides how often
        _file_systems.setdefault(key, made)
    return _file_systems[key]


def _web_settings() -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)
    # A server that compresses on the way would count other bytes than the file has.
    return {"timeout": timeout, "trust_env": True, "headers": {"Accept-Encoding": "identity"}}


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
        except Exception as raised:
            # fsspec's info() of a web server reports every failure, an outage too, as a missing file.
            is_hidden = _is_web(url) and isinstance(raised, FileNotFoundError)
            error = (raised.__cause__ if is_hidden else None) or raised
            if isinstance(error, OSError) and error.errno in NO_ROOM:
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


def _lasting(error: BaseException, url: str, what: str, cause: str) -> Exception | None:
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
    is_full = isinstance(error, OSError) and error.errno == errno.EMFILE  # too many open files
    remedy = "raise `ulimit -n`, or lower data.num_workers" if is_full else "check the address and your permission"
    return SourceError(f"cannot be {what} ({cause}); {remedy}.", source=mask(url)) if is_lasting else None


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
