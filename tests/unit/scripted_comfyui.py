"""A ComfyUI that follows a script: it tells its progress over a websocket, and can fail at each step."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.tests.unit.fake_comfyui import Fake, serve
from ansible_collections.wanmetal.comfyui.tests.web import Request, reply

HOME = Path(__file__).resolve().parents[2] / "molecule/services"
GRAPH: dict[str, dict[str, Any]] = json.loads((HOME / "still.json").read_text(encoding="utf-8"))
"""Core nodes only, so that a real ComfyUI renders it, too: an image in, a video of it out."""

WORKFLOW: dict[str, Any] = {
    "name": "still",
    "graph": GRAPH,
    "settings": json.loads((HOME / "still-settings.json").read_text(encoding="utf-8")),
}


def mp4(width: int = 64, height: int = 48, frames: int = 5, scale: int = 16, step: int = 1) -> bytes:
    """The tables of a video, without its pixels."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I4s", len(body) + 8, kind) + body

    track = box(
        b"trak",
        box(b"tkhd", bytes(76), struct.pack(">II", width << 16, height << 16)),
        box(
            b"mdia",
            box(b"mdhd", bytes(12), struct.pack(">II", scale, frames * step), bytes(4)),
            box(b"hdlr", bytes(8), b"vide", bytes(12)),
            box(b"minf", box(b"stbl", box(b"stts", bytes(4), struct.pack(">III", 1, frames, step)))),
        ),
    )
    return box(b"ftyp", b"isom") + box(b"mdat", bytes(100)) + box(b"moov", box(b"mvhd", bytes(100)), track)


@dataclass
class Script(Fake):
    """What happens to each graph. ``takes_s`` is how long it runs; ``end`` is how it ends."""

    takes_s: float = 0.02
    end: str = "success"  # or error, interrupted, lost, vanished
    cut_socket: bool = False
    no_socket: bool = False
    video: bytes = field(default_factory=mp4)
    key: str = "images"
    saves: str | None = ".mp4"  # the ending of the file's name
    error: dict[str, Any] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    graphs: list[dict[str, Any]] = field(default_factory=list)
    sockets: dict[str, Any] = field(default_factory=dict)
    turn: threading.Lock = field(default_factory=threading.Lock)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.special |= {"/ws": self.talk, "/upload/image": self.take}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/prompt" and "6" not in body["prompt"]:
            return 400, {"error": {"message": "Prompt has no outputs", "details": ""}, "node_errors": {}}
        if path == "/prompt" and self.reject is None:
            prompt_id = body.get("prompt_id") or f"job-{len(self.graphs)}"
            self.graphs.append(body["prompt"])
            self.queue["queue_pending"].append([0, prompt_id, {}])
            threading.Thread(target=self.play, args=(prompt_id, body), daemon=True).start()
            return 200, {"prompt_id": prompt_id, "node_errors": {}}
        if path == "/queue":
            gone = body["delete"]
            self.queue["queue_pending"] = [job for job in self.queue["queue_pending"] if job[1] not in gone]
        if path == "/interrupt" and any(job[1] == body.get("prompt_id") for job in self.queue["queue_running"]):
            self.end = "interrupted"
        return super().post(path, body)

    def play(self, prompt_id: str, body: dict[str, Any]) -> None:
        with self.turn:  # as ComfyUI does, one after another
            if not any(job[1] == prompt_id for job in self.queue["queue_pending"]):
                return
            self.queue["queue_pending"] = [job for job in self.queue["queue_pending"] if job[1] != prompt_id]
            self.queue["queue_running"].append([0, prompt_id, {}])
            client = body.get("client_id", "")
            self.tell(client, "executing", {"node": "4", "prompt_id": prompt_id})
            self.tell(client, "progress", {"node": "4", "value": 1, "max": 2, "prompt_id": prompt_id})
            if self.cut_socket and client in self.sockets:
                self.sockets.pop(client).shutdown(2)
            begun = time.monotonic()
            while time.monotonic() < begun + self.takes_s and self.end != "interrupted":
                time.sleep(0.005)
            if self.end != "lost":  # before it leaves the queue: ComfyUI does both at once
                self.history[prompt_id] = {"outputs": self.outputs(body["prompt"]), "status": self.ended()}
            self.queue["queue_running"] = []
            if self.end == "lost":
                return
            self.tell(client, "executing", {"node": None, "prompt_id": prompt_id})

    def outputs(self, graph: dict[str, Any]) -> dict[str, Any]:
        if self.end != "success":
            return {}
        folder, _, name = graph["6"]["inputs"]["filename_prefix"].rpartition("/")
        if self.saves is None:
            return {"6": {self.key: []}, "5": {"text": ["nothing"]}}
        self.files[f"{name}_00001_{self.saves}"] = self.video
        return {"6": {self.key: [{"filename": f"{name}_00001_{self.saves}", "subfolder": folder, "type": "output"}]}}

    def ended(self) -> dict[str, Any]:
        if self.end == "interrupted":
            return {"status_str": "error", "messages": [["execution_interrupted", {}]]}
        if self.end == "error":
            return {"status_str": "error", "messages": [["execution_error", self.error]]}
        return {"status_str": "success", "messages": []}

    def take(self, handler: Request) -> None:
        body = self.requests[-1][1]
        head, _, rest = body.partition(b'name="image"; filename="')
        name, _, data = rest.partition(b'"\r\n\r\n')
        assert b"handler" in head
        self.uploads[name.decode()] = data.rpartition(b"\r\n--")[0]
        reply(handler, json.dumps({"name": name.decode(), "subfolder": "handler", "type": "input"}).encode())

    def talk(self, handler: Request) -> None:
        if self.no_socket:
            reply(handler, b"no", 500)
            return
        accept = hashlib.sha1(
            (handler.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode(),
            usedforsecurity=False,
        )
        handler.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + base64.b64encode(accept.digest())
            + b"\r\n\r\n"
        )
        handler.wfile.flush()
        client = handler.path.partition("clientId=")[2]
        self.sockets[client] = handler.connection
        try:
            while handler.connection.recv(1024):  # until the other side closes
                pass
        except OSError:
            pass
        self.sockets.pop(client, None)

    def tell(self, client: str, kind: str, data: dict[str, Any]) -> None:
        text = json.dumps({"type": kind, "data": data}).encode()
        head = bytes([0x81, len(text)]) if len(text) < 126 else struct.pack(">BBH", 0x81, 126, len(text))
        if client in self.sockets:
            try:
                self.sockets[client].sendall(head + text)
            except OSError:
                self.sockets.pop(client, None)


@contextmanager
def scripted(**script: Any) -> Iterator[tuple[Script, str]]:
    fake = Script(**script)
    with serve(fake) as url:
        yield fake, url
