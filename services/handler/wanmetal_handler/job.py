"""One job from its request to its video and its receipt."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from . import images, output, request, workflows
from .comfyui_client import ComfyUIClient, ComfyUIError, NoAnswerError
from .failure import JobError
from .limit import Limit
from .render import Listener, Tell, render
from .settings import Settings

FOLDER = "handler"
"""The folder in ComfyUI's input and output that is the handler's own."""
_log = logging.getLogger("handler")


class Worker:
    """Does jobs, with one ComfyUI."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = ComfyUIClient(settings.comfyui_url, timeout_s=60)
        self.workflows = workflows.load(Path(settings.workflows))

    def check(self, given: object) -> tuple[workflows.Workflow, dict[str, Any]]:
        """Return the workflow and the values that a request asks for; raise RequestError where it is refused."""
        name = next(iter(self.workflows))
        if isinstance(given, Mapping) and "workflow" in given:
            name = given["workflow"]
            if not isinstance(name, str) or name not in self.workflows:
                raise request.RequestError(("workflow", name, f"one of {', '.join(self.workflows)}"))
            given = {key: value for key, value in given.items() if key != "workflow"}
        return self.workflows[name], request.check(given, self.workflows[name].fields)

    def do(
        self, job: str, given: object, waited_s: float, tell: Tell, limit: Limit, after: ExitStack
    ) -> dict[str, Any]:
        """Return the answer to a request: the video, what it is like, and its receipt.

        What is to be removed ``after`` the answer costs its caller no time.
        """
        seconds = {"queue": round(waited_s, 3)}
        name = f"{job}-{secrets.token_hex(4)}"  # another at each attempt
        client = ComfyUIClient(self.client.url, self.client.timeout_s)

        @contextmanager
        def stage(title: str) -> Iterator[None]:
            limit.check()
            tell({"stage": title})
            started = time.monotonic()
            try:
                yield
            except ComfyUIError as error:
                limit.check()
                raise JobError("comfyui", str(error)) from error
            seconds[title] = round(seconds.get(title, 0.0) + time.monotonic() - started, 3)

        workflow, values = self.check(given)
        hashes = {}
        after.callback(self.clean, name)
        with ExitStack() as opened:
            opened.enter_context(limit.ending(client.abort))
            video = opened.enter_context(TemporaryFile(dir=Path(self.settings.record).parent))
            # ComfyUI is asked while the image is read.
            asked = opened.enter_context(ThreadPoolExecutor(1)).submit(_ready, client, tell, limit, opened)
            opened.callback(client.abort)
            for which in [name for name in request.IMAGES if name in values]:
                with stage("image"):
                    picture = images.load(values[which], self.settings, limit)
                asked.result()
                with stage("upload"):
                    values[which] = client.upload(f"{name}-{which}.png", picture, FOLDER)
                hashes[which] = hashlib.sha256(picture).hexdigest()
            machine, listener = asked.result()
            with stage("render"):
                graph = workflow.fill(values, f"{FOLDER}/{name}")
                place = workflow.video(render(client, listener, workflow, graph, tell, limit, after))
            with stage("fetch"):
                client.view(place["filename"], place["subfolder"], place["type"], into=video)
                video.flush()
            data = output.content(video)
            metadata = output.measured(data, place["filename"])
            with stage("deliver"):
                address = output.deliver(video, place["filename"], name, self.settings, limit)
        parameters = {name: value for name, value in workflow.values(graph).items() if name not in hashes}
        receipt = {
            "workflow": workflow.name,
            "workflow_sha256": hashlib.sha256(json.dumps(workflow.graph, sort_keys=True).encode()).hexdigest(),
            "release": _read(self.settings.release).get("id"),
            **machine,
            "models": self.hashes(workflows.models(graph)),
            "seed": parameters.get("seed"),
            "parameters": parameters,
            "images_sha256": hashes,
            "video_sha256": hashlib.sha256(data).hexdigest(),
            "video_bytes": len(data),
            "seconds": seconds,
        }
        return {"video_url": address, "metadata": metadata, "receipt": receipt}

    def hashes(self, names: Sequence[str]) -> dict[str, str | None]:
        """Hashes of model files by the names that a graph has for them; None where nobody proved one."""
        proven = _read(self.settings.models).get("files", {}) if names else {}
        return {
            name: next((proof.get("sha256") for path, proof in proven.items() if path.endswith(f"/{name}")), None)
            for name in names
        }

    def clean(self, prefix: str = "") -> None:
        """Remove what a job has left in ComfyUI's folders; without its name, what all have."""
        for folder in filter(None, self.settings.folders.split(":")):
            try:
                with _opened(self.settings.data, folder) as inside:
                    for name in os.listdir(inside):  # noqa: PTH208 (of a descriptor)
                        if name.startswith(prefix):
                            with suppress(OSError):  # a folder, which is not the handler's
                                os.unlink(name, dir_fd=inside)
            except OSError as error:
                _log.warning("nothing is removed from %s: %s", folder, error.strerror)


@contextmanager
def _opened(root: str, folder: str) -> Iterator[int]:
    """Open a folder below another. Node packs may change all that lies between, so no link is followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    at = os.open(root, flags)
    try:
        for part in Path(folder).parts:
            if part != "/":
                above, at = at, os.open(part, flags | os.O_NOFOLLOW, dir_fd=at)
                os.close(above)
        yield at
    finally:
        os.close(at)


def _ready(client: ComfyUIClient, tell: Tell, limit: Limit, opened: ExitStack) -> tuple[dict[str, Any], Listener]:
    return _machine(client, tell, limit), Listener(client.url, limit, opened)


def _machine(client: ComfyUIClient, tell: Tell, limit: Limit) -> dict[str, Any]:
    """What ComfyUI says that it runs on. Its restart delays jobs, and fails none that has not begun."""
    while True:
        try:
            stats = client.system_stats()
        except NoAnswerError as error:
            tell({"stage": "comfyui"})
            if client.aborted or limit.over.wait(0.5):
                if limit.cancelled:
                    limit.check()
                raise JobError("comfyui", str(error)) from error
        except ComfyUIError as error:
            raise JobError("comfyui", str(error)) from error
        else:
            gpus = ", ".join(str(device.get("name")) for device in stats.get("devices", []))
            return {"comfyui": stats.get("system", {}).get("comfyui_version"), "gpu": gpus}


def _read(path: str) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a host without models has no such file
    return data if isinstance(data, dict) else {}
