"""One job from its request to its video."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import images, output, receipt, request, video
from .comfyui_client import ComfyUIClient, ComfyUIError, NoAnswerError
from .failure import JobError
from .fetch import Network
from .watching import Cancelled, Progress, Run
from .workflows import Workflow

FOLDER = "handler"
"""The folder in ComfyUI's input and output that is the handler's own."""
_MACHINE_HOLDS_S = 60.0


@dataclass(frozen=True)
class Limits:
    """What a job may cost."""

    job_s: float = 1800.0
    comfyui_s: float = 120.0
    image_s: float = 30.0
    image_bytes: int = 20_000_000
    image_pixels: int = 40_000_000
    inline_bytes: int = 10_000_000
    allowed: Sequence[Network] = ()


@dataclass
class Worker:
    """Does jobs, with one ComfyUI. ``homes`` are this machine's folders of what ComfyUI reads and writes for it."""

    client: ComfyUIClient
    workflows: Mapping[str, Workflow]
    sources: receipt.Sources
    limits: Limits = field(default_factory=Limits)
    bucket: output.Bucket | None = None
    homes: Sequence[Path] = ()
    _machine: tuple[float, dict[str, Any]] = (-_MACHINE_HOLDS_S, {})

    def check(self, given: object) -> tuple[Workflow, dict[str, Any]]:
        """Return the workflow and the values that a request asks for; raise RequestError where it is refused."""
        name = next(iter(self.workflows))
        if isinstance(given, Mapping) and "workflow" in given:
            name = given["workflow"]
            if not isinstance(name, str) or name not in self.workflows:
                allowed = f"one of {', '.join(self.workflows)}"
                raise request.RequestError([{"field": "workflow", "value": request.shown(name), "allowed": allowed}])
            given = {key: value for key, value in given.items() if key != "workflow"}
        workflow = self.workflows[name]
        return workflow, request.check(given, workflow.fields)

    def do(self, job: str, given: object, waited_s: float, progress: Progress, stop: threading.Event) -> dict[str, Any]:
        """Return the answer to a request: the video, what it is like, and its receipt."""
        deadline = time.monotonic() + self.limits.job_s
        seconds: dict[str, float] = {"queue": waited_s}
        name = f"{job}-{secrets.token_hex(4)}"  # another at each attempt

        @contextmanager
        def stage(title: str) -> Iterator[None]:
            if stop.is_set():
                raise Cancelled
            if title != "render":  # which tells more itself
                progress({"stage": title})
            started = time.monotonic()
            yield
            seconds[title] = seconds.get(title, 0.0) + time.monotonic() - started

        workflow, values = self.check(given)
        self._await_comfyui(min(deadline, time.monotonic() + self.limits.comfyui_s), progress, stop)
        try:
            pictures: dict[str, bytes] = {}
            for which in [name for name in request.IMAGES if name in values]:
                with stage("image"):
                    pictures[which] = self._image(values[which], deadline)
            for which, picture in pictures.items():
                with stage("upload"), _comfyui():
                    values[which] = self.client.upload(f"{name}-{which}.png", picture, FOLDER)
            with stage("render"):
                graph = workflow.fill(values, f"{FOLDER}/{name}")
                outputs = Run(self.client, workflow, graph, progress).outputs(deadline, stop)
            with stage("fetch"), _comfyui():
                place = workflow.video(outputs)
                data = self.client.view(place["filename"], place["subfolder"], place["type"])
            metadata = measured(data, place["filename"])
            with stage("deliver"):
                address = output.deliver(data, place["filename"], name, self.bucket, self.limits.inline_bytes)
        finally:
            self.clean(name)
        made_with = receipt.make(self.sources, workflow, graph, pictures, data, seconds, self.machine())
        return {"video_url": address, "metadata": metadata, "receipt": made_with}

    def _await_comfyui(self, deadline: float, progress: Progress, stop: threading.Event) -> None:
        """A restart of ComfyUI delays jobs, and fails none that has not begun."""
        while True:
            try:
                self.client.queue()
            except NoAnswerError as error:
                if time.monotonic() >= deadline:
                    raise JobError("comfyui", str(error)) from error
                progress({"stage": "comfyui"})
                stop.wait(0.5)
            except ComfyUIError as error:
                raise JobError("comfyui", str(error)) from error
            else:
                return
            if stop.is_set():
                raise Cancelled

    def _image(self, text: str, deadline: float) -> bytes:
        limits = self.limits
        return images.load(
            text,
            most_bytes=limits.image_bytes,
            most_pixels=limits.image_pixels,
            seconds=max(0.1, min(limits.image_s, deadline - time.monotonic())),
            allowed=limits.allowed,
        )

    def machine(self) -> dict[str, Any]:
        """What ComfyUI says that it runs on."""
        asked, found = self._machine
        if time.monotonic() - asked >= _MACHINE_HOLDS_S:
            try:
                stats = self.client.system_stats()
            except ComfyUIError:
                return found
            gpus = [str(device.get("name")) for device in stats.get("devices", [])]
            found = {"comfyui": stats.get("system", {}).get("comfyui_version"), "gpu": ", ".join(gpus)}
            self._machine = (time.monotonic(), found)
        return found

    def clean(self, prefix: str = "") -> None:
        """Remove what a job has left in ComfyUI's folders; without its name, what all have."""
        for home in self.homes:
            for path in home.glob(f"{prefix}*"):
                if path.is_file() or path.is_symlink():
                    path.unlink(missing_ok=True)


def measured(data: bytes, filename: str) -> dict[str, Any]:
    """What a video is like, by the file itself."""
    if not filename.lower().endswith((".mp4", ".mov")):
        return {"width": None, "height": None, "num_frames": None, "frame_rate": None, "duration": None}
    try:
        found = video.measure(data)
    except video.VideoError as error:
        raise JobError("output", str(error)) from error
    return {
        "width": found.width,
        "height": found.height,
        "num_frames": found.frames,
        "frame_rate": round(found.frames / found.seconds, 3) if found.seconds else None,
        "duration": round(found.seconds, 3),
    }


@contextmanager
def _comfyui() -> Iterator[None]:
    try:
        yield
    except ComfyUIError as error:
        raise JobError("comfyui", str(error)) from error
