"""A local origin that speaks like the real hosts: a Hub, its signed CDN, CivitAI and plain file servers.

Two servers, so that a redirect really leads to another host. Every file is made from a seed, nothing is stored.
Faults are a list: each is used up by the requests that it fits.

Run it by hand, or from a scenario::

    python tests/origin/origin.py --bind 127.0.0.1 --port 8600 --files files.json
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import json
import os
import random
import re
import socket
import socketserver
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"
_CHUNK = 256 * 1024
_HEADER = 96


class Blob:
    """Bytes that are made from a seed, or lie in a file."""

    def __init__(self, name: str, size: int = 0, *, file: Path | None = None, data: bytes | None = None) -> None:
        self.name = name
        self.file = file
        if file is not None:
            self.data = b""
            self.size = file.stat().st_size
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while part := stream.read(_CHUNK * 16):
                    digest.update(part)
            self.sha256 = digest.hexdigest()
        else:
            self.data = made(name, size) if data is None else data
            self.size = len(self.data)
            self.sha256 = hashlib.sha256(self.data).hexdigest()


def made(name: str, size: int) -> bytes:
    """Make bytes from a seed, with the header that the name promises where there is room for one."""
    data = random.Random(name).randbytes(size)  # noqa: S311
    if not name.endswith(".safetensors") or size <= _HEADER + 8:
        return data
    tensor = {"dtype": "U8", "shape": [size - _HEADER - 8], "data_offsets": [0, size - _HEADER - 8]}
    header = json.dumps({"weight": tensor}).encode().ljust(_HEADER)
    return len(header).to_bytes(8, "little") + header + data[_HEADER + 8 :]


@dataclass
class Fault:
    """Something that goes wrong, at most ``times`` times."""

    kind: str
    """status, drop, stall, slow, corrupt, html, reset, no_ranges, elsewhere, packed, longer, shorter, lie_size, ..."""
    where: str = "cdn"
    """hub (answers before the redirect), cdn, or api"""
    times: int = 1
    status: int = 500
    name: str = ""
    """Only for the blob of this name."""
    at: float = 0.5
    """How far into the answer, from 0 to 1."""
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    rate: int = 20_000


@dataclass
class Seen:
    """One request as it came in."""

    server: str
    method: str
    path: str
    name: str
    authorization: str
    range: str
    agent: str
    status: int = 0
    sent: int = 0


@dataclass
class Version:
    """One model version of CivitAI."""

    id: int
    files: list[dict[str, Any]]
    kind: str = "LORA"
    needs_token: bool = False


class Origin:
    """Both servers and all they serve. Use it as a context manager."""

    def __init__(
        self,
        *,
        bind: str = "127.0.0.1",
        cdn_bind: str = "127.0.0.2",
        port: int = 0,
        cdn_port: int = 0,
        life_s: float = 3600,
        send_buffer: int = 0,
    ) -> None:
        self.blobs: dict[str, Blob] = {}
        self.versions: dict[int, Version] = {}
        self.models: dict[int, list[int]] = {}
        """Ids of CivitAI's models with those of their versions."""
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.tokens: dict[str, str] = {}
        """Blob name to the token without which it is not given."""
        self.life_s = life_s
        self.send_buffer = send_buffer
        """Small enough, and what is counted as sent has left, instead of lying in a buffer."""
        self._key = os.urandom(16)
        self._lock = threading.Lock()
        self._servers = [
            _Server((bind, port), _handler(self, "hub")),
            _Server((cdn_bind, cdn_port), _handler(self, "cdn")),
        ]
        self.closing = threading.Event()

    def __enter__(self) -> Origin:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # What there is

    @property
    def hub(self) -> str:
        """Address of the first server."""
        host, port = self._servers[0].server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def cdn(self) -> str:
        """Address of the second server."""
        host, port = self._servers[1].server_address[:2]
        return f"http://{host!s}:{port}"

    def add(self, blob: Blob, token: str = "") -> Blob:
        """Serve a blob, perhaps only for a token."""
        self.blobs[blob.name] = blob
        if token:
            self.tokens[blob.name] = token
        return blob

    def publish(self, version: int, blob: Blob, kind: str = "LORA", *, needs_token: bool = False) -> Version:
        """Make a blob the primary file of a CivitAI version."""
        files = [
            {"id": 1, "name": "preview.png", "hashes": {}, "primary": False},
            {
                "id": 2,
                "name": blob.name,
                "primary": True,
                "sizeKB": blob.size / 1024,
                "hashes": {"SHA256": blob.sha256.upper()},
            },
        ]
        self.versions[version] = Version(version, files, kind, needs_token)
        return self.versions[version]

    def hub_url(self, name: str) -> str:
        """Address of a blob at the Hub: states size and sha256, redirects to a signed link."""
        return f"{self.hub}/own/repo/resolve/{REVISION}/{urllib.parse.quote(name)}"

    def plain_url(self, name: str) -> str:
        """Address of a blob at a plain file server: no statement, no redirect."""
        return f"{self.hub}/plain/{urllib.parse.quote(name)}"

    def moved_url(self, name: str) -> str:
        """Address of a blob that redirects, stating nothing."""
        return f"{self.hub}/moved/{urllib.parse.quote(name)}"

    # What happened

    def fail(self, *faults: Fault) -> None:
        """Let things go wrong from now on."""
        with self._lock:
            self.faults.extend(faults)

    def take(self, where: str, name: str) -> Fault | None:
        """Use up the next fault for a request."""
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.where == where and fault.name in {"", name}:
                    fault.times -= 1
                    return fault
        return None

    def note(self, seen: Seen) -> None:
        """Write a request down."""
        with self._lock:
            self.seen.append(seen)

    def sent(self, name: str = "") -> int:
        """Bytes of blobs that went out."""
        with self._lock:
            return sum(seen.sent for seen in self.seen if name in {"", seen.name})

    def sign(self, name: str) -> str:
        """Return a signed link."""
        until = f"{time.time() + self.life_s:.3f}"
        return f"{self.cdn}/signed/{urllib.parse.quote(name)}?until={until}&sig={self._signature(name, until)}"

    def _signature(self, name: str, until: str) -> str:
        return hmac.new(self._key, f"{name}{until}".encode(), "sha256").hexdigest()

    def is_signed(self, name: str, query: dict[str, list[str]]) -> bool:
        """Check a link."""
        until, sig = query.get("until", ["0"])[0], query.get("sig", [""])[0]
        return hmac.compare_digest(sig, self._signature(name, until)) and float(until) > time.time()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def server_bind(self) -> None:
        """Bind without asking a name server who this is."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this server is for."""


def _handler(origin: Origin, server: str) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.origin = origin
    Handler.server_name = server
    return Handler


class _Handler(BaseHTTPRequestHandler):
    origin: Origin
    server_name: str
    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024

    def setup(self) -> None:
        """Set the connection up."""
        super().setup()
        if self.origin.send_buffer:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.origin.send_buffer)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer; see the class of the origin."""
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        query = urllib.parse.parse_qs(parts.query)
        seen = Seen(
            self.server_name,
            self.command,
            path,
            path.rsplit("/", 1)[-1],
            self.headers.get("Authorization") or "",
            self.headers.get("Range") or "",
            self.headers.get("User-Agent") or "",
        )
        self.origin.note(seen)
        self.seen = seen
        with contextlib.suppress(OSError):
            self._route(path, query)

    def do_HEAD(self) -> None:
        """The Hub knows HEAD. The download address of CivitAI does not, and links are signed for GET."""
        if "/resolve/" in self.path:
            self.do_GET()
        else:
            self._text(403, "")

    def do_POST(self) -> None:
        """Only the Hub's paths-info is asked with POST."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        paths = urllib.parse.parse_qs(body).get("paths", [])
        seen = Seen("hub", "POST", self.path, "", self.headers.get("Authorization") or "", "", "")
        self.origin.note(seen)
        self.seen = seen
        if self._broken(self.origin.take("api", self.path.partition("/paths-info")[0].rsplit("/", 1)[-1])):
            return
        found = [self._info(path) for path in paths if path.rsplit("/", 1)[-1] in self.origin.blobs]
        self._text(200, json.dumps(found), "application/json")

    def _info(self, path: str) -> dict[str, Any]:
        blob = self.origin.blobs[path.rsplit("/", 1)[-1]]
        return {
            "type": "file",
            "oid": "1" * 40,
            "size": blob.size,
            "path": path,
            "lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 136},
            "xetHash": "f" * 64,
            "lastCommit": {"id": REVISION, "title": "upload", "date": "2025-03-01T00:00:00.000Z"},
        }

    def _route(self, path: str, query: dict[str, list[str]]) -> None:
        if path == "/_origin/stats":
            total = {"sent": self.origin.sent(), "requests": len(self.origin.seen)}
            self._text(200, json.dumps(total), "application/json")
        elif self.server_name == "cdn":
            self._cdn(path, query)
        elif "/resolve/" in path:
            self._hub(self._blob(path))
        elif path.startswith("/api/models/") and "/tree/" in path:
            listed = [self._info(name) for name in sorted(self.origin.blobs)]
            self._text(200, json.dumps(listed), "application/json")
        elif path.startswith("/api/models/"):
            names = [{"rfilename": name} for name in sorted(self.origin.blobs)]
            body = {"id": "own/repo", "modelId": "own/repo", "sha": REVISION, "siblings": names}
            self._text(200, json.dumps(body), "application/json", {"X-Repo-Commit": REVISION})
        elif path.startswith("/plain/"):
            self._plain(self._blob(path))
        elif path.startswith("/moved/"):
            self._redirect(self._blob(path), {})
        elif path.startswith("/api/v1/models/"):
            self._model(int(path.rsplit("/", 1)[-1]))
        elif path.startswith("/api/v1/model-versions/"):
            self._version(path)
        elif path.startswith("/api/download/models/"):
            self._civitai_file(path, query)
        else:
            self._text(404, "")

    def _blob(self, path: str) -> Blob | None:
        return self.origin.blobs.get(path.rsplit("/", 1)[-1])

    # The Hub

    def _hub(self, blob: Blob | None) -> None:
        fault = self.origin.take("hub", self.seen.name)
        if self._broken(fault):
            return
        if blob is None:
            self._text(404, "", extra={"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        if not self._allowed(blob):
            self._text(401, "", extra={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            return
        kind = fault.kind if fault else ""
        headers = {
            "X-Linked-Size": str(blob.size + (7 if kind == "lie_size" else 0)),
            "X-Linked-ETag": f'"{"0" * 64 if kind == "lie_hash" else blob.sha256}"',
            "X-Repo-Commit": REVISION,
            "X-Xet-Hash": "f" * 64,
        }
        self._redirect(blob, {} if kind == "silent" else headers)

    def _allowed(self, blob: Blob) -> bool:
        token = self.origin.tokens.get(blob.name)
        return token is None or self.seen.authorization == f"Bearer {token}"

    def _redirect(self, blob: Blob | None, headers: dict[str, str]) -> None:
        if blob is None:
            self._text(404, "")
            return
        self._text(302, "", extra={"Location": self.origin.sign(blob.name), **headers})

    def _plain(self, blob: Blob | None) -> None:
        fault = self.origin.take("hub", self.seen.name)
        if self._broken(fault):
            return
        if blob is None or not self._allowed(blob):
            self._text(404 if blob is None else 401, "")
            return
        self._send(blob, fault)

    # CivitAI

    def _version(self, path: str) -> None:
        fault = self.origin.take("api", self.seen.name)
        if self._broken(fault):
            return
        version = self.origin.versions.get(int(path.rsplit("/", 1)[-1]))
        if version is None:
            self._text(404, json.dumps({"error": "No version with that id"}), "application/json")
            return
        body = {"id": version.id, "modelId": 1, "name": "v1", "model": {"type": version.kind}, "files": version.files}
        self._text(200, json.dumps(body), "application/json")

    def _model(self, model: int) -> None:
        versions = [{"id": version, "name": f"v{version}"} for version in self.origin.models.get(model, [])]
        body = {"id": model, "modelVersions": versions} if versions else {"error": f"No model with id {model}"}
        self._text(200 if versions else 404, json.dumps(body), "application/json")

    def _civitai_file(self, path: str, query: dict[str, list[str]]) -> None:
        version = self.origin.versions.get(int(path.rsplit("/", 1)[-1]))
        wanted = int(query.get("fileId", ["0"])[0])
        files = [file for file in version.files if file["id"] == wanted] if version else []
        if version is None or not files:
            self._text(404, json.dumps({"error": "Not found"}), "application/json")
        elif version.needs_token and not self.seen.authorization.startswith("Bearer "):
            message = "The creator of this asset requires you to be logged in to download it"
            self._text(401, json.dumps({"error": message}), "application/json")
        else:
            blob = self.origin.blobs.get(f"v{version.id}-{wanted}") or self.origin.blobs[files[0]["name"]]
            self._redirect(blob, {"Cache-Control": "no-store"})

    # The CDN

    def _cdn(self, path: str, query: dict[str, list[str]]) -> None:
        blob = self._blob(path)
        fault = self.origin.take("cdn", self.seen.name)
        if self._broken(fault):
            return
        if self.seen.authorization:
            # As a presigned address does when a header comes along.
            self._text(400, "")
        elif blob is None or not self.origin.is_signed(blob.name, query):
            self._text(403, "")
        else:
            self._send(blob, fault)

    # Answers

    def _broken(self, fault: Fault | None) -> bool:
        """Give an answer that is no file."""
        if fault is None:
            return False
        if fault.kind == "status":
            self._text(fault.status, fault.body, extra=fault.headers)
        elif fault.kind == "html":
            self._text(200, fault.body or "<!doctype html><title>Sign in</title>", "text/html; charset=utf-8")
        elif fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        else:
            return False
        return True

    def _text(self, status: int, body: str, kind: str = "text/plain", extra: dict[str, str] | None = None) -> None:
        self.seen.status = status
        data = body.encode()
        self.send_response(status)
        for key, value in (extra or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def _send(self, blob: Blob, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        size = blob.size + {"longer": 11, "shorter": -11}.get(kind, 0)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.seen.range)
        first, last = 0, size - 1
        etag = f'"{blob.sha256[:16]}"'
        if match and kind != "no_ranges" and self.headers.get("If-Range", etag) == etag:
            first, last = int(match[1]), min(int(match[2] or last), last)
            if first >= size:
                self._text(416, "", extra={"Content-Range": f"bytes */{size}"})
                return
            if kind == "elsewhere":
                first, last = 0, last - first
            self.seen.status = 206
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.seen.status = 200
            self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", etag)
        if kind == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.flush()
        end = min(last + 1, blob.size)
        if blob.file is not None and fault is None:
            self._send_file(blob, first, end)
            return
        for data in self._pieces(blob, first, end, fault):
            self.wfile.write(data)
            self.wfile.flush()
            self.seen.sent += len(data)
        if size != blob.size and last + 1 > blob.size:
            self.close_connection = True

    def _send_file(self, blob: Blob, first: int, end: int) -> None:
        assert blob.file is not None
        with blob.file.open("rb") as stream:
            while first < end:
                moved = os.sendfile(self.connection.fileno(), stream.fileno(), first, end - first)
                if moved == 0:
                    break
                first += moved
                self.seen.sent += moved

    def _pieces(self, blob: Blob, first: int, end: int, fault: Fault | None) -> Iterator[bytes]:
        data = blob.data if blob.file is None else blob.file.read_bytes()
        turn = first + int((end - first) * (fault.at if fault else 1))
        if fault is not None and fault.kind == "corrupt" and end > first:
            turn = min(turn, end - 1)
            yield data[first:turn]
            yield bytes([data[turn] ^ 0xFF])
            yield data[turn + 1 : end]
            return
        if fault is not None and fault.kind in {"drop", "stall"}:
            yield data[first:turn]
            if fault.kind == "stall":
                self.origin.closing.wait(30)
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        step = _CHUNK
        if fault is not None and fault.kind == "slow":
            step = max(1, fault.rate // 20)
        for offset in range(first, end, step):
            if step != _CHUNK and self.origin.closing.wait(0.05):
                return
            yield data[offset : min(end, offset + step)]


def main() -> None:
    """Serve what a JSON file names: {"files": [{"name", "size" or "file"}], "versions": [{"id", "kind", "name"}]}."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cdn-port", type=int, default=0)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--state-file", type=Path, help="where to write its process and address, as JSON")
    parser.add_argument("--send-buffer", type=int, default=0, help="bytes; small ones make the count of bytes exact")
    parser.add_argument("--seconds", type=float, help="end after this long, in any case")
    options = parser.parse_args()
    origin = Origin(
        bind=options.bind,
        cdn_bind=options.bind,
        port=options.port,
        cdn_port=options.cdn_port,
        send_buffer=options.send_buffer,
    )
    listed = json.loads(options.files.read_text(encoding="utf-8"))
    for entry in listed["files"]:
        file = Path(entry["file"]) if "file" in entry else None
        origin.add(Blob(entry["name"], entry.get("size", 0), file=file))
    for entry in listed.get("versions", []):
        origin.publish(entry["id"], origin.blobs[entry["name"]], entry["kind"])
    if options.state_file:
        part = options.state_file.with_suffix(".part")
        part.write_text(json.dumps({"pid": os.getpid(), "address": origin.hub}), encoding="utf-8")
        part.replace(options.state_file)
    with origin, contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait(options.seconds)


if __name__ == "__main__":
    main()
