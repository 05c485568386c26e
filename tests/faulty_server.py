"""A web server on loopback that serves a folder, with ranges, and misbehaves as told."""

import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FaultyServer:
    """`faults` are met one per request for a file whose name ends in `only`: "stall" (sends the header, then nothing),
    "cut" (half of the body), "damage" (one bit), or a status such as 500."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: deque[str | int] = deque()
        self.only = ""
        self.has_ranges = True
        self.head_status = 200
        """Another answers every HEAD."""
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, path, Range) of each request so far."""
        self._connections: set[socket.socket] = set()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def num_requests(self, suffix: str) -> int:
        return sum(path.endswith(suffix) for _, path, _ in self.requests)

    def appear(self) -> None:
        faulty = self

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

            def process_request(self, request, client_address):
                faulty._connections.add(request)
                super().process_request(request, client_address)

            def handle_error(self, request, client_address):
                """Clients that hang up are part of the play."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                faulty._answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args):
                """Nothing."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def vanish(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._connections.clear()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        wanted = handler.headers.get("Range")
        self.requests.append((handler.command, path, wanted))
        fault: str | int | None = None
        if handler.command == "HEAD" and self.head_status != 200:
            fault = self.head_status
        elif handler.command == "GET" and path.endswith(self.only) and self.faults:
            fault = self.faults.popleft()
        file = self.folder / path.lstrip("/")
        if isinstance(fault, int) or not file.exists():
            handler.send_response(fault if isinstance(fault, int) else 404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if file.is_dir():
            links = "".join(f'<a href="{inner.name}">{inner.name}</a>' for inner in file.iterdir())
            self._send(handler, 200, links.encode(), {"Content-Type": "text/html"}, fault)
            return
        data = file.read_bytes()
        if not wanted or not self.has_ranges:
            self._send(handler, 200, data, {}, fault)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            self._send(handler, 416, b"", {}, fault)
            return
        part = data[int(first) : int(last) + 1]
        self._send(handler, 206, part, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, fault)

    def _send(self, handler, status: int, data: bytes, headers: dict[str, str], fault: str | None) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault == "damage":
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        if fault in ("cut", "stall"):
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            if fault == "stall":
                self.over.wait(60)
            handler.close_connection = True
            return
        handler.wfile.write(data)


@contextmanager
def serve(folder: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(folder)
    server.appear()
    try:
        yield server
    finally:
        server.over.set()
        server.vanish()
