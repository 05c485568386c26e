"""Files behind URLs (s3, gs, hf, http, https, file) through fsspec, from any process and thread.

A missing file is a `FileNotFoundError` and a refused one a `DataError`, both at once. Transient errors are tried again
(see `retries`).
"""

import os
import re
import sys
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from unetdist.cli.credentials import is_masked, mask
from unetdist.errors import ConfigError, DataError, SourceError
from unetdist.storage import retries
from unetdist.storage.files import write_atomic
from unetdist.storage.retries import retry, status_of

# The protocols that are opened. fsspec knows others, and some of them read other URLs or run code.
SCHEMES = ("file", "http", "https", "s3", "s3a", "gs", "gcs", "hf")
# Bytes per request of a download: what is lost when a connection breaks.
PIECE = 16 * 2**20
# Bytes per second below which a ranged read counts as stalled.
SLOWEST = 2**16
UNLIMITED = sys.maxsize

Sink = TypeVar("Sink", bound=IO[bytes])

_file_systems: dict[tuple[int, str, str], Any] = {}


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
    longest = retries.STALL_S + size / SLOWEST
    deadline = time.monotonic() + max(longest, retries.RETRY_S)

    def attempt() -> bytes:
        # Libraries watch their sockets only; this bounds the whole request, whatever they do.
        left = max(deadline - time.monotonic(), retries.STALL_S)
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
            timeouts = {"connect_timeout": retries.STALL_S, "read_timeout": retries.STALL_S}
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

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=retries.STALL_S, sock_read=retries.STALL_S)
    # A server that compresses on the way would count other bytes than the file has.
    return {"timeout": timeout, "trust_env": True, "headers": {"Accept-Encoding": "identity"}}
