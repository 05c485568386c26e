"""Files behind URLs (s3, gs, hf, http, https, file) through fsspec, for any process and thread.

A missing file is `FileNotFoundError` and a refused one `DataError`, both at once; what may pass is tried again, see
`retries`.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from unetdist.cli.credentials import is_masked, mask
from unetdist.errors import ConfigError, DataError
from unetdist.storage import retries
from unetdist.storage.files import write_atomic
from unetdist.storage.retries import retry, status_of

SCHEMES = ("file", "http", "https", "s3", "s3a", "gs", "gcs", "hf")
"""The only protocols that are used. fsspec knows others too, and some of them read other URLs, or run code."""
PIECE = 16 * 2**20
"""Bytes of one request of a download: what is lost when a connection breaks."""
SLOWEST = 2**16
"""Bytes per second below which a ranged read counts as stalled, whatever the protocol."""
HEAD_REFUSED = {403, 405, 501}
"""Answers that say nothing of a GET: a URL may be signed for that alone."""

_file_systems: dict[tuple[int, str, str], Any] = {}
_without_ranges: set[str] = set()


class RangesUnsupportedError(DataError):
    """The server sends whole files only."""


def is_url(location: object) -> bool:
    """Whether it is a URL, `scheme://...`, and not a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(location)) is not None


def refusal(location: str) -> str | None:
    """Why a path or URL will not be opened, with a remedy; None if it may be opened."""
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
    """The URL of `name` in the folder `url`, whose query (a signature) it keeps; `name` itself where that is a URL."""
    if is_url(name):
        return name
    parts = urlsplit(url) if "?" in url else None
    if parts is None:
        return f"{url.rstrip('/')}/{name}"
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def can_range(url: str) -> bool:
    """Whether parts of files can be asked for; True until the server has ignored a request for one."""
    return urlsplit(url).netloc not in _without_ranges


def read(url: str, *, most: int | None = None) -> bytes:
    """The whole file, in one request.

    `DataError` where it has more than `most` bytes, of which no more are taken: a server may send without end.
    """
    data = retry(url, lambda: _read_whole(url, most))
    if most is not None and len(data) > most:
        raise DataError(
            f"is larger than {most / 1e9:.1f} GB, and was not read; cut it into parts.", source=mask(url)
        )
    return data


def read_range(url: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on, fewer only at its end; `RangesUnsupportedError` where there are no ranges."""
    if size <= 0:
        return b""
    if not can_range(url):
        raise _no_ranges(url)
    whole = retries.STALL_S + size / SLOWEST
    deadline = time.monotonic() + max(whole, retries.RETRY_S)

    def attempt() -> bytes:
        # Libraries watch their sockets; this bounds the whole, whatever they do.
        left = deadline - time.monotonic()
        return _read_range(url, start, size, min(whole, max(left, retries.STALL_S)))

    return retry(url, attempt)


def size_of(url: str) -> int | None:
    """Bytes of the file; None where the server does not say."""
    return retry(url, lambda: _size_of(url))


def pieces(url: str, start: int = 0) -> Iterator[bytes]:
    """The file from byte `start` on, piece by piece; what breaks off is continued, not begun again."""
    try:
        while can_range(url):
            piece = read_range(url, start, PIECE)
            if piece:
                yield piece
            start += len(piece)
            if len(piece) < PIECE:
                return
    except RangesUnsupportedError:
        pass
    yield from _stream(url, start)


def names_in(url: str) -> list[str]:
    """Names of the files directly in a folder, sorted; none where there is no such folder."""
    try:
        found = retry(url, lambda: _file_system(url).ls(url, detail=True))
    except FileNotFoundError:
        return []
    files = [entry["name"] for entry in found if entry["type"] == "file"]
    if urlsplit(url).scheme in ("http", "https"):  # Links; elsewhere "#" and "%" are letters of a name.
        files = [unquote(urlsplit(name).path) for name in files]
    return sorted({name.rpartition("/")[2] for name in files} - {""})


def write(url: str, data: bytes | memoryview) -> None:
    """Put a whole file: readers see all of it or none."""
    if url.startswith("file:"):
        with write_atomic(_file_system(url)._strip_protocol(url)) as file:
            file.write(data)
    else:
        retry(url, lambda: _file_system(url).pipe_file(url, bytes(data)), what="written")


def upload(url: str, local: Path) -> None:
    """Put the file `local`."""
    retry(url, lambda: _file_system(url).put_file(str(local), url), what="written")


def remove(url: str) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        retry(url, lambda: _file_system(url).rm_file(url), what="removed")


def _read_whole(url: str, most: int | None) -> bytes:
    """At most one byte more than `most`."""
    files = _file_system(url)
    if most is None:
        return bytes(files.cat_file(url))
    if urlsplit(url).scheme not in ("http", "https"):
        return _read_range(url, 0, most + 1, None)
    from fsspec.asyn import sync

    return bytes(sync(files.loop, _http_whole, files, url, most))


async def _http_whole(files: Any, url: str, most: int) -> bytes:
    session = await files.set_session()
    async with session.get(files.encode_url(url)) as response:
        response.raise_for_status()
        return await _at_most(response, most + 1)


async def _at_most(response: Any, size: int) -> bytes:
    """Read at most `size` bytes of the body, whatever the server sends."""
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) >= size:
            break
    return bytes(data[:size])


def _read_range(url: str, start: int, size: int, timeout: float | None) -> bytes:
    files = _file_system(url)
    limit = (
        {"timeout": timeout} if files.async_impl and timeout else {}
    )  # It takes an event loop to stop them.
    if urlsplit(url).scheme in ("http", "https"):
        from fsspec.asyn import sync

        return bytes(sync(files.loop, _http_range, files, url, start, size, **limit))
    try:
        return bytes(files.cat_file(url, start=start, end=start + size, **limit))
    except Exception as error:
        if status_of(error) == 416:  # Begins at or behind the end.
            return b""
        raise


async def _http_range(files: Any, url: str, start: int, size: int) -> bytes:
    # Not cat_file, which takes in a whole shard where the server ignores the range.
    session = await files.set_session()
    headers = {"Range": f"bytes={start}-{start + size - 1}"}
    async with session.get(files.encode_url(url), headers=headers) as response:
        if response.status == 416:
            return b""
        response.raise_for_status()
        if response.status != 206:
            _without_ranges.add(urlsplit(url).netloc)
            raise _no_ranges(url)
        return await _at_most(response, size)


def _no_ranges(url: str) -> RangesUnsupportedError:
    return RangesUnsupportedError("the server sends whole files only (no ranges).", source=mask(url))


def _size_of(url: str) -> int | None:
    files = _file_system(url)
    if urlsplit(url).scheme in ("http", "https"):
        from fsspec.asyn import sync

        # Not info(), which calls every failure a missing file.
        size = sync(files.loop, _http_size, files, url, timeout=2 * retries.STALL_S)
    else:
        size = files.info(url)["size"]
    return None if size is None else int(size)


async def _http_size(files: Any, url: str) -> int | None:
    session = await files.set_session()
    async with session.head(files.encode_url(url), allow_redirects=True) as response:
        if response.status in HEAD_REFUSED:
            return None
        response.raise_for_status()
        length = response.headers.get("Content-Length")
        return None if length is None else int(length)


def _stream(url: str, start: int) -> Iterator[bytes]:
    """Whole file in one request; after a failure it is asked for again, and what was given already is skipped."""
    file: Any = None
    at = start

    def close() -> None:
        nonlocal file
        if file is not None:
            file.close()
            file = None

    def next_piece() -> bytes:
        nonlocal file
        try:
            if file is None:
                file = _file_system(url).open(url, "rb", block_size=0)
                skip = at
                while skip and (passed := file.read(min(skip, PIECE))):
                    skip -= len(passed)
            return bytes(file.read(PIECE))
        except Exception:
            close()
            raise

    try:
        while piece := retry(url, next_piece):
            at += len(piece)
            yield piece
    finally:
        close()


def _file_system(url: str) -> Any:
    """One per process and server: the thread and the connections of an asynchronous one do not survive a fork."""
    import fsspec

    if problem := refusal(url):  # fsspec would follow a chain, and import what a protocol names
        raise ConfigError(f"{mask(url)}: {problem}")
    parts = urlsplit(url)
    key = os.getpid(), parts.scheme, parts.netloc
    if key not in _file_systems:
        # The Hub's needs its listings: it would else ask for one with every read.
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": parts.scheme == "hf"}
        if parts.scheme in ("http", "https"):
            options |= {"client_kwargs": _http_settings()}
        elif parts.scheme in ("s3", "s3a"):
            timeouts = {"connect_timeout": retries.STALL_S, "read_timeout": retries.STALL_S}
            once = {"retries": {"total_max_attempts": 1}, "max_pool_connections": 64}
            options |= {"config_kwargs": {**timeouts, **once}}
        elif parts.scheme in ("gs", "gcs"):
            options |= {"session_kwargs": {"timeout": _http_settings()["timeout"]}}
        made = fsspec.core.url_to_fs(url, **options)[0]
        if hasattr(made, "retries"):
            made.retries = 1  # The patience is ours.
        _file_systems.setdefault(key, made)
    return _file_systems[key]


def _http_settings() -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=retries.STALL_S, sock_read=retries.STALL_S)
    # A server that compresses on the way would count other bytes than the file has.
    return {"timeout": timeout, "trust_env": True, "headers": {"Accept-Encoding": "identity"}}
