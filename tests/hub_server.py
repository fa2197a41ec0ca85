"""A small server on 127.0.0.1 that speaks as much of the Hugging Face Hub's HTTP as we need.

`/{repository}/resolve/{revision}/{file}` answers with the file, and says in its headers which
commit, size and checksum it has; as a mirror does (the Hub itself redirects to another host for
the bytes). `/api/...` lists a repository, makes one, and takes commits; large files come by the
git-LFS protocol first, as at the Hub without Xet. `fault` makes it misbehave.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "fedcba9876543210fedcba9876543210fedcba98"
HTML = b"<!DOCTYPE html><html><body>Please log in to use this network</body></html>"


@dataclass
class Hub:
    """What the server has and what it has been asked.

    Arguments:
        repository: the only one that there is, or can be made.
        files: file name -> bytes, of the newest commit.
        older: the same, of the commit `OLDER`.
        commit: the newest one.
        fault: None, or one of `"<status>"`, `"slow"`, `"html"` (instead of the Hub), `"html-body"`
            (instead of the bytes), `"cut"` (answers from the start end in the middle),
            `"cut-always"` (no answer brings any bytes), `"corrupt"` (one bit differs), `"silent"`
            (accepts and never answers), `"silent-body"` (so after the first half of a file),
            `"drip"` (the last 20 bytes of a file come one by one, `delay` apart), `"read-only"`
            (401 for whatever writes).
    """

    repository: str
    files: dict[str, bytes]
    older: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    fault: str | None = None
    delay: float = 3.0  # seconds that "slow" waits
    endpoint: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    agents: dict[str, str] = field(default_factory=dict)  # path -> User-Agent
    created: dict[str, Any] | None = None  # what the repository was asked for with
    large: dict[str, bytes] = field(default_factory=dict)  # sha256 -> bytes of LFS
    messages: list[str] = field(default_factory=list)  # of the commits
    storage: str | None = None  # where Xet is; None: files are not in it
    closed: threading.Event = field(default_factory=threading.Event)

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

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        hub.agents[self.path] = self.headers.get("User-Agent", "")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        writes = self.command in ("POST", "PUT")
        checks = self.path == "/api/validate-yaml"  # of which the Hub does not ask who wants it
        if hub.fault is not None and hub.fault.isdigit():
            return self._fail(int(hub.fault), None)
        if hub.fault == "silent":
            return self._be_silent()
        if hub.fault == "slow":
            threading.Event().wait(hub.delay)  # not time.sleep, which tests replace
        if hub.fault == "html":
            return self._send(200, {"Content-Type": "text/html"}, HTML)
        if hub.fault == "read-only" and writes and not checks:
            return self._fail(401, None)
        prefix = f"/{hub.repository}/resolve/"
        if self.path.startswith(prefix):
            revision, _, name = self.path.removeprefix(prefix).partition("/")
            return self._resolve(unquote(revision), unquote(name))
        if writes:
            return self._write(body)
        if "/xet-read-token/" in self.path:
            token = {"X-Xet-Access-Token": "token", "X-Xet-Token-Expiration": "9999999999"}
            return self._send(200, {"X-Xet-Cas-Url": hub.storage or "", **token}, b"{}")
        if self.path.startswith(f"/api/models/{hub.repository}"):
            path, _, _ = self.path.partition("?")
            return self._list(path.partition("/revision/")[2] or "main")
        self._fail(404, "RepoNotFound")

    def _be_silent(self) -> None:
        self.close_connection = True
        self.hub.closed.wait()

    def _at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        newest = self.hub.commit
        commit = {"main": newest, newest: newest, OLDER: OLDER}.get(unquote(revision))
        if commit is None:
            return None
        return commit, self.hub.files if commit == newest else self.hub.older

    def _list(self, revision: str) -> None:
        found = self._at(revision)
        if found is None:
            return self._fail(404, "RevisionNotFound")
        commit, files = found
        names = [{"rfilename": name} for name in files]
        self._json({"id": self.hub.repository, "sha": commit, "siblings": names})

    def _resolve(self, revision: str, name: str) -> None:
        found = self._at(revision)
        if found is None:
            return self._fail(404, "RevisionNotFound")
        commit, files = found
        data = files.get(name)
        if data is None:
            return self._fail(404, "EntryNotFound", commit)
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        if self.hub.storage:
            route = f"{self.hub.endpoint}/api/models/{self.hub.repository}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": digest, "X-Xet-Refresh-Route": route}
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
        if (fault == "cut" and not start) or fault == "silent-body":
            body = body[: len(body) // 2]
        if fault == "cut-always":
            body = b""
        last = body[-20:] if fault == "drip" else b""
        self._send(206 if start else 200, headers, body.removesuffix(last))
        for byte in last:
            self.hub.closed.wait(self.hub.delay)
            with suppress(ConnectionError):
                self.wfile.write(bytes([byte]))
        if fault == "silent-body":
            self._be_silent()
        self.close_connection = True

    # What writes.

    def _write(self, body: bytes) -> None:
        hub, api = self.hub, f"/api/models/{self.hub.repository}"
        if self.command == "PUT":
            hub.large[hashlib.sha256(body).hexdigest()] = body
            self._send(200, {}, b"")
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.path.startswith(f"{api}/preupload/"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif self.path == f"/{hub.repository}.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif self.path.startswith(f"{api}/commit/"):
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._fail(404, "RepoNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        hub = self.hub
        url = {"url": f"{hub.endpoint}/{hub.repository}", "name": hub.repository, "id": "1"}
        if f"{asked.get('organization')}/{asked['name']}" != hub.repository:
            return self._fail(403, None)
        if hub.created is not None:
            return self._json({**url, "error": "exists"}, 409)
        hub.created = asked
        self._json(url)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        hub, files = self.hub, dict(self.hub.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            else:
                return self._fail(400, None)
        hub.files = files
        hub.commit = hashlib.sha1(repr(lines).encode()).hexdigest()
        self._json({
            "commitUrl": f"{hub.endpoint}/{hub.repository}/commit/{hub.commit}",
            "commitOid": hub.commit,
            "pullRequestUrl": None,
        })  # fmt: skip

    def _fail(self, status: int, code: str | None, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        if commit:
            headers["X-Repo-Commit"] = commit
        self._send(status, headers, b"")

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
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
        hub.closed.set()
        server.shutdown()
        server.server_close()


def turn_to(
    endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch, seconds: float | None = 0.3
) -> None:
    """Turns huggingface_hub to a server, with an empty cache and no Xet, for a test.

    It reads the environment when it is imported, and 0.24 copies the values between its modules.

    Arguments:
        seconds: that it waits for an answer; None: as always.
    """
    values: dict[str, object] = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
    }
    if seconds is not None:
        values |= {"HF_HUB_ETAG_TIMEOUT": seconds, "HF_HUB_DOWNLOAD_TIMEOUT": seconds}
    set_constants(monkeypatch, **values)


def set_constants(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """Sets constants of huggingface_hub for a test, in all of its modules that have a copy."""
    for name in ("constants", "file_download", "hf_api", "_commit_api", "lfs"):
        importlib.import_module(f"huggingface_hub.{name}")
    for name, module in list(sys.modules.items()):
        if name.startswith("huggingface_hub."):
            for constant, value in values.items():
                if constant in vars(module):
                    monkeypatch.setattr(module, constant, value)
