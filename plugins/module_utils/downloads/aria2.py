"""One aria2c that is driven over JSON-RPC, on the loopback, with a secret that no argument list shows."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import Problem
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.sources import AGENT

MIB = 1024 * 1024
_STATUS = ["gid", "status", "completedLength", "totalLength", "bitfield", "pieceLength", "errorCode", "errorMessage"]


class GoneError(Exception):
    """aria2c is no longer there."""


class Aria2:
    """The process and its RPC."""

    def __init__(self, *, lock: int, limit: int, pause_s: float) -> None:
        self._lock = lock
        self._limit = limit
        self._pause_s = pause_s
        self._process: subprocess.Popen[bytes] | None = None
        self._rpc: http.client.HTTPConnection | None = None
        self._port = 0
        self._secret = ""

    def start(self) -> None:
        """Start aria2c and wait until it answers."""
        program = shutil.which("aria2c")
        if program is None:
            raise Problem("local", "aria2c is missing; install the package aria2")
        for _unused in range(5):
            self._port = _free_port()
            self._secret = secrets.token_hex(24)
            with _settings_in_memory(self._settings()) as settings:
                # pylint: disable-next=ansible-bad-function
                self._process = subprocess.Popen(
                    [program, f"--conf-path=/proc/self/fd/{settings.fileno()}"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # With the lock in its hands, no other run can begin before this process has ended, too.
                    pass_fds=(settings.fileno(), self._lock),
                    env=_environment(),
                    # Where the module acts for another user, aria2c is that user for good.
                    user=os.geteuid() if os.geteuid() != os.getuid() else None,
                    group=os.getegid() if os.geteuid() != os.getuid() else None,
                    start_new_session=True,
                )
                if self._answers():
                    return
            self.kill()
        raise Problem("local", "aria2c does not start")

    def _settings(self) -> str:
        options: dict[str, object] = {
            "enable-rpc": "true",
            "rpc-listen-port": self._port,
            "rpc-secret": self._secret,
            "stop-with-process": os.getpid(),
            "no-netrc": "true",
            "quiet": "true",
            "user-agent": AGENT,
            "max-concurrent-downloads": 1000,
            "max-overall-download-limit": self._limit,
            # Sparse files work everywhere. The control file, saved with an fsync, says what is there.
            "file-allocation": "none",
            "auto-save-interval": 1,
            "continue": "true",
            "always-resume": "true",
            "allow-overwrite": "false",
            "auto-file-renaming": "false",
            "remote-time": "false",
            "async-dns": "false",
            "connect-timeout": 15,
            "timeout": 30,
            "max-tries": 3,
            "retry-wait": round(min(1.0, self._pause_s)),
            "max-file-not-found": 1,
        }
        certificates = os.environ.get("SSL_CERT_FILE")
        if certificates:
            options["ca-certificate"] = certificates
        return "".join(f"{key}={value}\n" for key, value in options.items())

    def _answers(self) -> bool:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.alive:
            try:
                self._call("getVersion")
            except (GoneError, Problem):
                time.sleep(0.01)
            else:
                return True
        return False

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def add(
        self,
        urls: Sequence[str],
        path: Path,
        *,
        connections: int,
        split: int,
        piece: int,
        in_order: bool,
        version: str = "",
    ) -> str:
        """Begin a download; return its id.

        In order means that the complete front grows, so that hashing can follow. Each connection is kept and asks for
        one piece after the other, the next before the last has come. Else each connection asks for a large part of its
        own, which costs less where files are small, and works with hosts that take one request at a time.
        """
        options = {
            "dir": str(path.parent),
            "out": path.name,
            "split": str(connections),
            "max-connection-per-server": str(min(16, connections)),
            "piece-length": str(piece),
            "min-split-size": str(piece if in_order else split),
            "stream-piece-selector": "inorder" if in_order else "default",
            "enable-http-pipelining": "true" if in_order else "false",
            # A host whose file has changed meanwhile sends all of it, which ends this download.
            "header": [f"If-Range: {version}"] if version else [],
        }
        return str(self._call("addUri", list(urls), options))

    def status(self) -> list[dict[str, Any]]:
        """Return all downloads, those that ended included."""
        calls = [("tellActive", _STATUS), ("tellWaiting", 0, 1000, _STATUS), ("tellStopped", 0, 1000, _STATUS)]
        asked = [{"methodName": f"aria2.{name}", "params": [self._token, *params]} for name, *params in calls]
        answers: list[Any] = self._post("system.multicall", asked)
        if not all(isinstance(answer, list) for answer in answers):
            raise Problem("network", "aria2c does not tell how far it is")
        return [download for (downloads,) in answers for download in downloads]

    def forget(self, gid: str) -> None:
        """Drop a download that ended."""
        self._call("removeDownloadResult", gid)

    def cut(self, gid: str) -> None:
        """Stop a download, keep what it has, and return when its file is closed."""
        self._call("forceRemove", gid)
        for _unused in range(100):
            if self._call("tellStatus", gid, ["status"])["status"] in {"removed", "error", "complete"}:
                break
            time.sleep(0.02)
        self.forget(gid)

    @property
    def _token(self) -> str:
        return f"token:{self._secret}"

    def _call(self, method: str, *params: object) -> Any:
        return self._post(f"aria2.{method}", self._token, *params)

    def _post(self, method: str, *params: object) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": "w", "method": method, "params": params})
        try:
            if self._rpc is None:
                self._rpc = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
            self._rpc.request("POST", "/jsonrpc", body, {"Content-Type": "application/json"})
            data = json.loads(self._rpc.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            if self._rpc is not None:
                self._rpc.close()
                self._rpc = None
            raise GoneError(str(error)) from error
        if "error" in data:
            raise Problem("network", f"aria2c refuses {method}: {data['error'].get('message')}")
        return data["result"]

    def stop(self) -> None:
        """End aria2c so that it writes down what it has."""
        if self._process is None:
            return
        if self.alive:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self.kill()

    def kill(self) -> None:
        """End aria2c at once; for when nothing moves."""
        if self._rpc is not None:
            self._rpc.close()
            self._rpc = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def piece_size(size: int) -> int:
    """Return what one request asks for: small enough for hashing to follow closely, large enough to ask seldom."""
    piece = MIB
    while piece < 16 * MIB and piece * 128 < size:
        piece *= 2
    return piece


def leading_bytes(bitfield: str, piece: int, size: int) -> int:
    """Return how many bytes at the front of the file are complete, from aria2c's bitfield in hexadecimal."""
    full = len(bitfield) - len(bitfield.lstrip("f"))
    bits = full * 4
    if full < len(bitfield):
        digit = int(bitfield[full], 16)
        for mask in (8, 4, 2):
            if not digit & mask:
                break
            bits += 1
    return min(size, bits * piece)


def control_of(part: Path) -> Path:
    """Return aria2c's record of a broken download."""
    return part.with_name(part.name + ".aria2")


def control_length(control: Path) -> int | None:
    """Return the total length that a control file is for; None when it cannot be read."""
    try:
        with control.open("rb") as stream:
            head = stream.read(10)
            (hash_length,) = struct.unpack(">I", head[6:10])
            # version, extension, length of the info hash, the hash; then the piece length and the total length
            stream.seek(hash_length, os.SEEK_CUR)
            rest = stream.read(12)
        return int(struct.unpack(">Q", rest[4:12])[0]) if head[:2] == b"\x00\x01" else None
    except (OSError, struct.error):
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _settings_in_memory(text: str) -> Any:
    stream = os.fdopen(os.memfd_create("aria2"), "w+")
    stream.write(text)
    stream.flush()
    return stream


def _environment() -> Mapping[str, str]:
    env = {**os.environ, "LC_ALL": "C"}
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        if name not in env and name.upper() in env:
            env[name] = env[name.upper()]
    return env
