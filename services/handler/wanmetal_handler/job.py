"""One job from its request to what it makes and its receipt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from . import convert, isolated, media, output, workflows
from .comfyui_client import ComfyUIClient, ComfyUIError, NoAnswerError
from .comfyuis import ComfyUI, ComfyUIs
from .failure import JobError, LostError
from .inputs import RequestError
from .limit import Limit
from .render import Listener, Tell, render
from .settings import Settings
from .workflows import Task

FOLDER = "handler"
"""The folder in ComfyUI's input and output that is the handler's own."""
_TRIES = 2
_CONVERT_S, _CONVERT_BYTES = 30.0, 800_000_000
_log = logging.getLogger("handler")
Options = Mapping[str, Any]


class Worker:
    """Does jobs, with the host's ComfyUIs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.comfyuis = ComfyUIs(settings.comfyui_url, settings.concurrency)
        self.workflows = workflows.load(Path(settings.workflows))
        if settings.warmup and settings.warmup not in self.workflows:
            names = ", ".join(self.workflows)
            raise workflows.WorkflowError(f"handler_warmup names {settings.warmup!r}, which is none of {names}")

    def check(self, given: object) -> Task | None:
        """Return what a request asks for, or nothing where its graph has to be converted first.

        Raises RequestError where it is refused.
        """
        name = next(iter(self.workflows))
        if isinstance(given, Mapping) and "workflow" in given:
            name = given["workflow"]
            if isinstance(name, Mapping) and self.settings.raw_workflows:
                if not convert.needed(name):
                    return workflows.brought(given, self.settings.raw_nodes.split())
                if problems := workflows.files_of(given)[1]:
                    raise RequestError(*problems)
                return None
            if not isinstance(name, str) or name not in self.workflows:
                also = " or a graph in API format" if self.settings.raw_workflows else ""
                off = "; graphs of your own need handler_raw_workflows: true" if isinstance(name, Mapping) else ""
                raise RequestError(("workflow", name, f"one of {', '.join(self.workflows)}{also}{off}"))
            given = {key: value for key, value in given.items() if key != "workflow"}
        return self.workflows[name].task(given)

    def do(
        self,
        job: str,
        given: Any,
        waited_s: float,
        tell: Tell,
        limit: Limit,
        after: ExitStack,
        options: Options | None = None,
    ) -> dict[str, Any]:
        """Return the answer to a request: what was made, what it is like, and its receipt.

        What is to be removed ``after`` the answer costs its caller no time. Where a ComfyUI ends, another renders it.
        """
        task, last = self.check(given), None
        files: dict[str, tuple[str, bytes]] = {}
        seconds = {"queue": round(waited_s, 3)}
        for tries in range(1, _TRIES + 1):
            run = _Run(self, job, tell, limit, after, options or {}, seconds)
            after.callback(self.clean, run.name)
            with ExitStack() as held:
                # A ComfyUI is asked while the media are read.
                found = held.enter_context(ThreadPoolExecutor(1)).submit(run.ready, held, last)
                held.callback(run.asking.end)
                try:
                    if task is None:
                        task = self._converted(given, run.found(found)[0], limit)
                    run.read(task, files)
                    last, listener = run.found(found)
                    return run.made(task, last, listener, files)
                except LostError:
                    if tries == _TRIES:
                        raise
                    _log.info("job %s: its ComfyUI has ended; another renders it", job)
        raise AssertionError

    def _converted(self, given: Mapping[str, Any], comfyui: ComfyUI, limit: Limit) -> Task:
        try:
            known = json.dumps(comfyui.client.object_info())
        except ComfyUIError as error:
            raise JobError("comfyui", str(error)) from error
        try:
            text = json.dumps(given["workflow"])
            graph, replaced = json.loads(isolated.run(limit, _CONVERT_S, _CONVERT_BYTES, "convert", text, known))
        except (TimeoutError, ChildProcessError) as error:
            raise JobError("request", "the workflow needs too much time or memory to be converted") from error
        task = workflows.brought({**given, "workflow": graph}, self.settings.raw_nodes.split())
        return dataclasses.replace(task, replaced=tuple(replaced))

    def described(self) -> dict[str, Any]:
        """All workflows with their inputs, ranges, defaults and an example; choices are ComfyUI's own."""
        found = {name: workflow.described() for name, workflow in self.workflows.items()}
        schemas: dict[str, Any] = {}
        for name, workflow in self.workflows.items():
            for field, known in found[name]["inputs"]["properties"].items():
                place = workflow.fields[field]
                if not place or known["type"] != "string" or "x-kind" in known or "prompt" in field:
                    continue
                kind = workflow.graph[place[0]]["class_type"]
                if kind not in schemas:
                    with suppress(ComfyUIError):
                        client = ComfyUIClient(self.comfyuis.all[0].client.url, 2.0)
                        schemas[kind] = client.object_info(kind).get(kind, {}).get("input", {})
                sections = schemas.get(kind, {})
                entry = next((part[place[1]] for part in sections.values() if place[1] in part), [None])
                choices = entry[0] if isinstance(entry[0], list) else dict(*entry[1:2]).get("options")
                if isinstance(choices, list):
                    known["enum"] = choices
        return found

    def hashes(self, names: Sequence[str]) -> dict[str, str | None]:
        """Hashes of model files by the names that a graph has for them; None where nobody verified one."""
        verified = _read(self.settings.models).get("files", {}) if names else {}
        return {
            name: next((proof.get("sha256") for path, proof in verified.items() if path.endswith(f"/{name}")), None)
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


@dataclasses.dataclass
class _Run:
    """One try of a job with one ComfyUI."""

    worker: Worker
    job: str
    tell: Tell
    limit: Limit
    after: ExitStack
    options: Options
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        self.settings = self.worker.settings
        self.name = f"{self.job}-{secrets.token_hex(4)}"  # another at each try
        self.asking = Limit(self.limit.left() + 0.1)
        self._room = self.settings.inline_mb * 1e6  # for what the answer holds

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Tell of a part of the work, and measure it."""
        self.limit.check()
        self.tell({"stage": title})
        started = time.monotonic()
        try:
            yield
        except ComfyUIError as error:
            self.limit.check()
            raise (LostError if isinstance(error, NoAnswerError) else JobError)("comfyui", str(error)) from error
        self.seconds[title] = round(self.seconds.get(title, 0.0) + time.monotonic() - started, 3)

    def ready(self, held: ExitStack, last: ComfyUI | None) -> tuple[ComfyUI, Listener]:
        """Wait for a ComfyUI, and listen to it."""
        held.callback(self.asking.close)
        with self.limit.ending(self.asking.end):
            found = held.enter_context(
                self.worker.comfyuis.one(self.asking, lambda: self.tell({"stage": "comfyui"}), last)
            )
            return found, Listener(found.client.url, self.limit, self.after)

    def found(self, asked: Future[tuple[ComfyUI, Listener]]) -> tuple[ComfyUI, Listener]:
        """Return what ``ready`` does."""
        try:
            return asked.result()
        except JobError:
            if self.limit.cancelled:
                self.limit.check()
            raise

    def read(self, task: Task, files: dict[str, tuple[str, bytes]]) -> None:
        """Read all media, unless an earlier try has."""
        for name, one in task.media.items():
            if name not in files:
                with self.stage("image" if one.kind == "mask" else one.kind):
                    files[name] = media.load(one.kind, one.text, self.settings, self.limit)
                if sum(len(data) for _unused, data in files.values()) > self.settings.media_mb * 1e6:
                    why = f"the files of the request have more than {self.settings.media_mb:g} MB together"
                    raise JobError(one.kind, why)

    def made(
        self, task: Task, comfyui: ComfyUI, listener: Listener, files: Mapping[str, tuple[str, bytes]]
    ) -> dict[str, Any]:
        """Render, and return the answer."""
        client, workflow, names = ComfyUIClient(comfyui.client.url, 60), task.workflow, {}
        with comfyui.doing(self.job), self.limit.ending(client.abort):
            for number, (name, (suffix, data)) in enumerate(files.items()):
                with self.stage("upload"):
                    names[name] = client.upload(f"{self.name}-{number}.{suffix}", data, FOLDER)
            graph = task.filled(names, f"{FOLDER}/{self.name}")
            extra = {"extra_data": {"api_key_comfy_org": task.api_key}} if task.api_key else {}
            with self.stage("render"):
                outputs = render(client, listener, workflow, graph, self.tell, self.limit, self.after, extra)
            if workflow.name:
                places = [at for at in workflows.listed(outputs, workflow.output) if _is_video(at["filename"])][:1]
                if not places:
                    node = workflow.title(workflow.output)
                    raise JobError("output", f"the graph came to its end, and node {node!r} gave no video")
            else:
                places = [at for at in workflows.listed(outputs) if at["type"] != "temp"]
            made = [self._delivered(task, client, place, number) for number, place in enumerate(places)]
        release = _read(self.settings.release).get("id")
        hashes = {name: hashlib.sha256(data).hexdigest() for name, (_unused, data) in files.items()}
        receipt = {
            "workflow": workflow.name or None,
            "workflow_sha256": workflows.digest(workflow.graph),
            "release": release,
            **comfyui.known(release),
            "models": self.worker.hashes(workflows.models(graph)),
        }
        if not workflow.name:
            answer: dict[str, Any] = {} if made else {"status": "success_no_images", "images": []}
            for one in made:
                answer.setdefault(one.group, []).append(one.entry())
            receipt |= {"replaced": task.replaced} if task.replaced else {}
            receipt |= {"files_sha256": hashes, "outputs": [one.facts for one in made], "seconds": self.seconds}
            return {**answer, "receipt": receipt}
        [video] = made
        parameters = {name: value for name, value in workflow.values(graph).items() if name not in hashes}
        receipt |= {
            "seed": parameters.get("seed"),
            "parameters": parameters,
            "images_sha256": hashes,
            "video_sha256": video.facts["sha256"],
            "video_bytes": video.facts["bytes"],
            "seconds": self.seconds,
        }
        return {"video_url": video.address, "metadata": video.metadata, "receipt": receipt}

    def _delivered(self, task: Task, client: ComfyUIClient, place: Mapping[str, str], number: int) -> _Output:
        """Fetch a file, and send it to where it goes."""
        named, filename = task.workflow.name, task.original(place["filename"], f"{FOLDER}/{self.name}")
        with TemporaryFile(dir=Path(self.settings.record).parent) as file:
            with self.stage("fetch"):
                client.view(place["filename"], place["subfolder"], place["type"], into=file)
                file.flush()
            data = output.content(file)
            metadata = output.measured(data, filename) if named else {}
            with self.stage("deliver"):
                suffix = filename.rpartition(".")[2].lower()
                key = f"{self.name}.{suffix}" if named else f"{self.name}/{number}-{filename}"
                bucket = _bucket(self.options.get("s3Config"))
                address = output.deliver(file, key, self.settings, self.limit, bucket, self._room)
            facts = {"filename": filename, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        made = _Output(address, facts, metadata)
        self._room -= len(data) if made.inline else 0
        return made


@dataclasses.dataclass(frozen=True)
class _Output:
    """A file that a job has made, with its link, or a data: URI of all of it."""

    address: str
    facts: dict[str, Any]
    metadata: dict[str, Any]

    @property
    def inline(self) -> bool:
        return self.address.startswith("data:")

    @property
    def group(self) -> str:
        """The list of an answer that it stands in."""
        kind = workflows.kind_of(self.facts["filename"])
        return "audio" if kind == "audio" else f"{kind}s"

    def entry(self) -> dict[str, str]:
        """What stands in that list."""
        data = self.address.partition(",")[2] if self.inline else self.address
        return {"filename": self.facts["filename"], "type": "base64" if self.inline else "s3_url", "data": data}


def _is_video(filename: str) -> bool:
    return workflows.kind_of(filename) == "video" or filename.lower().endswith(".webp")


def _bucket(given: Mapping[str, str] | None) -> dict[str, str]:
    """What a job says of the bucket that it wants, in the names of the settings."""
    names = {"endpointUrl": "endpoint_url", "accessId": "access_key_id", "accessSecret": "secret_access_key"}
    names |= {"bucketName": "name", "region": "region"}
    return {f"bucket_{names[name]}": value for name, value in (given or {}).items() if value}


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


def _read(path: str) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a host without models has no such file
    return data if isinstance(data, dict) else {}
