"""ComfyUI's real browser page with a stand-in for ComfyUI behind it, run in headless Chromium.

The page is the frontend package that the locks pin, as it comes from the package index; the node packs' scripts are
those of their repositories. Behind it is no ComfyUI: a small server answers the routes that the page asks at start.
Node types come from files/locks/schemas, so no model, no GPU and no Python of a node pack is needed.
"""

from __future__ import annotations

import json
import mimetypes
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import requests
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import PREVIEWS, to_api
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import (
    Input,
    NodeType,
    Schemas,
    from_object_info,
)
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks, workflows
from ansible_collections.wanmetal.comfyui.tests.web import Request, body, hosting, reply

from tests.e2e import tiny_worker
from tests.worker import PROJECT, STATE, Worker

PACKAGE = "comfyui-frontend-package"
EXPORT = PROJECT / "tests/pack/wanmetal_tests/web/export.js"
SCRIPTS = {  # packs whose scripts change what the page makes of their nodes, with the folder of these
    "ComfyUI-KJNodes": "web",
    "ComfyUI-VideoHelperSuite": "web",
}
OTHERS = {  # packs that no host gets, and that people's files need all the same
    "rgthree-comfy": ("rgthree/rgthree-comfy", "13b4399c00b5ef5a97b1b6800fc1185874740f5d", "web/comfyui"),
}
_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingNodesWarning": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
_ANSWERS: dict[str, Any] = {
    "/embeddings": [],
    "/experiment/models": [],
    "/features": {},
    "/global_subgraphs": {},
    "/history": {},
    "/i18n": {},
    "/prompt": {"exec_info": {"queue_remaining": 0}},
    "/queue": {"queue_running": [], "queue_pending": []},
    "/settings": _SETTINGS,
    "/system_stats": {"system": {"comfyui_version": "0", "argv": [], "python_version": "3"}, "devices": []},
    "/users": {"storage": "server", "migrated": True},
    "/workflow_templates": {},
}


def pinned_version(lock: str = "base-cu128") -> str:
    """The version of the frontend that a lock of Python packages pins."""
    found = re.search(rf"^{PACKAGE}==(\S+)", locks.find(f"python/{lock}.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def package(version: str) -> Path:
    """The frontend's files, from the package index; they are kept beside the lab."""
    target = STATE / f"frontend-{version}"
    static = target / "comfyui_frontend_package/static"
    if not static.is_dir():
        STATE.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=STATE))
        command = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(made), f"{PACKAGE}=={version}"]
        subprocess.run(command, check=True)
        made.rename(target)
    return static


def scripts(into: Path) -> dict[str, Path]:
    """The scripts of node packs, by the name under which the page asks for them."""
    packs = locks.load("custom_nodes")["packs"]
    wanted = {name: (packs[name]["repository"], packs[name]["commit"], folder) for name, folder in SCRIPTS.items()}
    wanted |= {
        name: (f"https://github.com/{path}.git", commit, folder) for name, (path, commit, folder) in OTHERS.items()
    }
    return {name: _scripts_of(*where, into / name) for name, where in wanted.items()}


def _scripts_of(repository: str, commit: str, folder: str, into: Path) -> Path:
    mirror = os.environ.get("WANMETAL_MIRROR", "").removeprefix("file://").rstrip("/")
    if mirror:
        bare = Path(mirror) / repository.removeprefix("https://github.com/")
    else:
        bare = into.with_suffix(".git")
        subprocess.run(["git", "clone", "--quiet", "--bare", "--filter=blob:none", repository, str(bare)], check=True)
    git = ["git", "--git-dir", str(bare)]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", commit, folder.split("/")[0]], capture_output=True, check=True
    )
    for path in listed.stdout.decode().splitlines():
        if path.endswith((".js", ".css")):
            file = into / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(subprocess.run([*git, "show", f"{commit}:{path}"], capture_output=True, check=True).stdout)
    return into / folder


# -- node types as ComfyUI tells them


def object_info(schemas: Schemas) -> dict[str, Any]:
    """What ComfyUI answers to /object_info, from what is recorded of it."""
    return {name: _told(one) for name, one in schemas.items()}


def _told(one: NodeType) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for entry in one.inputs:
        sections["optional" if entry.optional else "required"][entry.name] = _spec(entry)
    return {
        "input": sections,
        "input_order": {section: list(entries) for section, entries in sections.items()},
        "output": [kind for kind, _ in one.outputs],
        "output_is_list": [False] * len(one.outputs),
        "output_name": [label for _, label in one.outputs],
        "name": one.name,
        "display_name": one.title or one.name,
        "description": "",
        "python_module": "nodes" if one.pack == "core" else f"custom_nodes.{one.pack}",
        "category": "test",
        "output_node": one.ends,
    }


def _spec(entry: Input) -> list[Any]:
    options = dict(entry.options)
    dynamic = options.pop("dynamic", None)
    if dynamic is not None and entry.choices is None:
        return ["COMFY_DYNAMICSLOT_V3", {"slotType": entry.type, "inputs": dynamic["*"]}]
    if dynamic is not None:
        options["options"] = [{"key": key, "inputs": inputs} for key, inputs in dynamic.items()]
        return [entry.type, options]
    if entry.drawn:
        options["dynamicPrompts"] = True
    if entry.control:
        options["control_after_generate"] = True
    if entry.type in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "BOUNDING_BOX", "CURVE") and not entry.widget:
        options["forceInput"] = True
    if entry.widget and "," in entry.type:  # of several types, the first has the widget
        options["widgetType"] = entry.type.split(",")[0]
    if entry.type != "COMBO":
        return [entry.type, options]
    if entry.upload:
        options["image_upload"] = True
    return [list(entry.choices or ["file.safetensors"]), options]


# -- the server


@dataclass
class Page:
    """What the server gives out, and what the page has left."""

    static: Path
    schemas: Schemas
    packs: Mapping[str, Path]
    workflows: Mapping[str, Any]
    answers: dict[str, Any] = field(default_factory=dict)
    raw: Mapping[str, bytes] = field(default_factory=dict)
    """Further files, by the path under which the page asks for them."""
    kept: bytes | None = None
    missing: set[str] = field(default_factory=set)
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Fill in the answers."""
        files = [
            f"/extensions/{name}/{file.relative_to(folder).as_posix()}"
            for name, folder in self.packs.items()
            for file in sorted(folder.rglob("*.js"))
        ]
        self.answers = {
            **_ANSWERS,
            "/object_info": object_info(self.schemas),
            "/extensions": [
                *files,
                "/extensions/wanmetal_tests/export.js",
                *(path for path in self.raw if path.endswith(".js")),
            ],
            "/extensions/wanmetal_tests/list.json": {"names": list(self.workflows), "pictures": [], "patience": 20},
            **self.answers,
        }
        self.answers |= {f"/extensions/wanmetal_tests/{name}.json": one for name, one in self.workflows.items()}

    def get(self, path: str) -> tuple[str, bytes] | None:
        """The answer to a path, with its type."""
        if path in self.raw:
            return mimetypes.guess_type(path)[0] or "application/octet-stream", self.raw[path]
        if path in self.answers:
            return "application/json", json.dumps(self.answers[path]).encode()
        if path == "/extensions/wanmetal_tests/export.js":
            return "text/javascript", EXPORT.read_bytes()
        if path == "/rgthree/config.js":  # which that pack's own server writes
            return "text/javascript", b"export const rgthreeConfig = {};"
        first, *rest = (path.strip("/") or "index.html").split("/")
        file = self.static.joinpath(first, *rest)
        if first == "extensions" and rest[0] in self.packs:
            file = self.packs[rest[0]].joinpath(*rest[1:])
        elif first == "rgthree":  # its scripts ask for more of their folder by this address
            file = self.packs["rgthree-comfy"].parent.joinpath(*rest)
        if file.is_file():
            return mimetypes.guess_type(file.name)[0] or "application/octet-stream", file.read_bytes()
        self.missing.add(path)
        return None


@contextmanager
def served(page: Page) -> Iterator[str]:
    """The address of a page, while it is served."""

    def answer(request: Request) -> None:
        if request.command == "POST":
            data = body(request)
            reply(request, b"{}")
            if "wanmetal-export" in request.path:
                page.kept = data
                page.done.set()
            return
        path = unquote(urlsplit(request.path).path)
        found = page.get(path.removeprefix("/api") if path.startswith("/api/") else path)
        kind, content = found or ("text/plain", b"")
        reply(request, content, 200 if found else 404, kind)

    with hosting(answer) as url:
        yield url


def chromium() -> str:
    """The browser; a test without one is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium is at hand: what the browser makes of the workflows is NOT tested")
    return found


@contextmanager
def opened(address: str, query: str = "?wanmetal-export") -> Iterator[None]:
    """The page, open in the browser, which exports by the script of the tests' pack."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={profile}", f"{address}/{query}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def exported(page: Page, seconds: float = 3000, query: str = "?wanmetal-export") -> dict[str, Any]:
    """What the page makes of the workflows, for the API. The time is for a browser that hangs."""
    with served(page) as address, opened(address, query):
        assert page.done.wait(seconds), f"the browser has exported nothing; it found no {sorted(page.missing)}"
    assert page.kept is not None
    return dict(json.loads(page.kept))


# -- a lab host's page


def browse(worker: Worker, address: str, names: Sequence[str], seconds: float = 900) -> dict[str, Any]:
    """Open workflows in Chromium, by a script of the tests' pack; return what the browser makes of them."""
    web = {f"web/{name}.json": json.dumps(workflows.load(name)).encode() for name in names}
    web["web/list.json"] = json.dumps({"names": list(names), "pictures": []}).encode()
    tiny_worker.send(worker, f"/srv/wanmetal/hosts/{worker.name}/current/ComfyUI/custom_nodes/wanmetal_tests", web)
    kept = f"{address}/userdata/wanmetal-export.json"
    with opened(address):
        deadline = time.monotonic() + seconds
        while (answer := requests.get(kept, timeout=10)).status_code != 200:
            assert time.monotonic() < deadline, "the browser has exported nothing"
            time.sleep(1)
        return dict(answer.json())


def assert_same(name: str, found: Mapping[str, Any], object_info: Mapping[str, Any]) -> None:
    """The browser shows a shipped workflow without a fault, and makes the same of it for the API as we do there."""
    assert not found["red"], name
    assert not found["errors"], name
    for node in found["api"].values():
        node["inputs"] = {key: value for key, value in node["inputs"].items() if key not in PREVIEWS}
    assert found["api"] == to_api(workflows.load(name), from_object_info(object_info), strict=False), name
