"""The part of the Hugging Face Hub's web interface that an upload and a download of small files use, on loopback."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Repositories as {name: {file: bytes}}; `requests` lists (method, path) so far."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []

    def revision(self, name: str) -> str:
        """As a commit's hash: another when a file changes."""
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[name].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def commit(self, name: str, lines: list[dict]) -> None:
        """Take in the lines of a commit; every file comes whole, since `preupload` asks for that."""
        for line in lines:
            if line["key"] == "file":
                value = line["value"]
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])


@contextmanager
def fake_hub() -> Iterator[tuple[FakeHub, str]]:
    """Yields (the hub, its address for HF_ENDPOINT)."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = self._path()
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/[^/]+", path):
                self._tell(match[1], match[2])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._send_file(*match.groups())
            else:
                self._answer({"error": f"no {path}"}, 404)

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self):
            path = self._path()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path == "/api/repos/create":
                request = json.loads(body)
                name = f"{request.get('organization') or 'somebody'}/{request['name']}"
                hub.repositories.setdefault(name, {})
                self._answer({"url": f"{address}/{name}"})
            elif path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
                files = [{**file, "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                         for file in json.loads(body)["files"]]  # fmt: skip
                self._answer({"files": files})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
                hub.commit(match[1], [json.loads(line) for line in body.splitlines()])
                revision = hub.revision(match[1])
                self._answer({"success": True, "commitOid": revision,
                              "commitUrl": f"{address}/{match[1]}/commit/{revision}"})  # fmt: skip
            else:
                self._answer({"error": f"no {path}"}, 404)

        def log_message(self, *_):
            pass

        def _path(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            return path

        def _tell(self, name, what):
            if name not in hub.repositories:
                self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                return
            files = hub.repositories[name]
            if what == "tree":
                self._answer([{"type": "file", "path": path, "size": len(content), "oid": oid(content)}
                              for path, content in files.items()])  # fmt: skip
                return
            self._answer({"id": name, "modelId": name, "sha": hub.revision(name), "private": False,
                          "siblings": [{"rfilename": path} for path in files]})  # fmt: skip

        def _send_file(self, name, path):
            content = hub.repositories.get(name, {}).get(path)
            if content is None:
                self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            self._send(content, 200, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": hub.revision(name)})

        def _answer(self, answer, status=200, headers=None):
            self._send(json.dumps(answer).encode(), status, {"Content-Type": "application/json", **(headers or {})})

        def _send(self, content, status, headers):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def oid(content: bytes) -> str:
    """The name that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
