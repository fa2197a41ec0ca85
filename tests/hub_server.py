"""A small server on 127.0.0.1 that speaks as much of the Hugging Face Hub's HTTP as downloads need.

`/{repository}/resolve/{revision}/{file}` answers with the file, and says in its headers which
commit, size and checksum it has; as a mirror does (the Hub itself redirects to another host for
the bytes). `fault` makes it misbehave.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "fedcba9876543210fedcba9876543210fedcba98"
HTML = b"<!DOCTYPE html><html><body>Please log in to use this network</body></html>"


@dataclass
class Hub:
    """What the server has and what it has been asked.

    Arguments:
        files: file name -> bytes, of the newest commit.
        older: the same, of the commit `OLDER`.
        commit: the newest one.
        fault: None, or one of `"<status>"`, `"slow"`, `"html"` (instead of the Hub), `"html-body"`
            (instead of the bytes), `"cut"` (answers from the start end in the middle),
            `"cut-always"` (no answer brings any bytes), `"corrupt"` (one bit differs).
    """

    repository: str
    files: dict[str, bytes]
    older: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    fault: str | None = None
    delay: float = 3.0  # seconds that "slow" waits
    endpoint: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def downloads(self) -> list[str | None]:
        """The Range header of every request for bytes so far."""
        resolved = f"/{self.repository}/resolve/"
        return [
            span
            for method, path, span in self.requests
            if method == "GET" and path.startswith(resolved)
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if hub.fault is not None and hub.fault.isdigit():
            return self._fail(int(hub.fault), None)
        if hub.fault == "slow":
            threading.Event().wait(hub.delay)  # not time.sleep, which tests replace
        if hub.fault == "html":
            return self._send(200, {"Content-Type": "text/html"}, HTML)
        prefix = f"/{hub.repository}/resolve/"
        if not self.path.startswith(prefix):
            return self._fail(404, "RepoNotFound")
        revision, _, name = self.path.removeprefix(prefix).partition("/")
        self._resolve(revision, name)

    def _resolve(self, revision: str, name: str) -> None:
        newest = self.hub.commit
        commit = {"main": newest, newest: newest, OLDER: OLDER}.get(revision)
        if commit is None:
            return self._fail(404, "RevisionNotFound")
        data = (self.hub.files if commit == newest else self.hub.older).get(name)
        if data is None:
            return self._fail(404, "EntryNotFound", commit)
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        if self.command == "HEAD":
            return self._send(200, headers | {"Content-Length": str(len(data))}, b"")
        self._bytes(headers, data)

    def _bytes(self, headers: dict[str, str], data: bytes) -> None:
        """The file from the demanded position on, or what `fault` makes of it."""
        fault = self.hub.fault
        if fault == "html-body":
            data = HTML.ljust(len(data))
        if fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        span = self.headers.get("Range")
        start = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        body = data[start:]
        headers |= {"Content-Length": str(len(body))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if fault == "cut" and not start:
            body = body[: len(body) // 2]
        if fault == "cut-always":
            body = b""
        self._send(206 if start else 200, headers, body)
        self.close_connection = True

    def _fail(self, status: int, code: str | None, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        if commit:
            headers["X-Repo-Commit"] = commit
        self._send(status, headers, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):  # a client that has lost its patience
                self.wfile.write(body)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Runs the server in a thread; `hub.endpoint` is its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
