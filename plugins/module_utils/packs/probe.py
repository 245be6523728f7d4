"""Starts ComfyUI with one node pack, and writes down what the pack does while it is imported.

It runs in the sandbox, with ComfyUI's Python: probe.py CORE BASE NAME. The answer is BASE/found.json.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 3.0
_WATCHED = ("torch.load", "subprocess.Popen", "socket.socket", "builtins.open", "builtins.eval", "builtins.exec")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.rename": 1, "os.symlink": 1, "os.link": 1, "os.chmod": 0}
_STARTS = {"subprocess.Popen": 1, "os.system": 0, "os.exec": 1, "os.posix_spawn": 1, "os.spawn": 2}


class Watch:
    """What an audit hook sees: events while the pack is imported, and those that its code causes at any time."""

    def __init__(self, folder: str) -> None:
        self.folder = folder + os.sep
        self.importing = False
        self.seen: dict[str, list[str]] = {"connections": [], "processes": [], "writes": [], "evaluates": []}
        self._busy = threading.local()

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Take an event; one that the hook causes itself is none."""
        if event != "exec" and not event.startswith(("open", "os.", "socket.", "subprocess.")):
            return
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self._take(event, args)
        except Exception as error:
            self._add("processes", f"{event}, which could not be read: {error!r}")
        finally:
            self._busy.now = False

    def _take(self, event: str, args: tuple[Any, ...]) -> None:
        kind, what = "", ""
        if event == "exec":
            caller = sys._getframe(2).f_code.co_filename
            if caller.startswith(self.folder) and getattr(args[0], "co_filename", "") == "<string>":
                kind, what = "evaluates", f"{caller[len(self.folder) :]}:{sys._getframe(2).f_lineno}"
        elif event in {"socket.connect", "socket.sendto"} and isinstance(args[1], tuple):
            kind, what = "connections", ":".join(str(part) for part in args[1][:2])
        elif event in {"socket.getaddrinfo", "socket.gethostbyname"} and args[0]:
            kind, what = "connections", f"look-up of {_text(args[0])}"
        elif event in _STARTS:
            words = args[_STARTS[event]]
            listed = words if isinstance(words, list | tuple) else [words]
            kind, what = "processes", " ".join(_text(word) for word in listed)
        elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            mode, flags = args[1] or "", args[2] or 0
            if set(mode) & set("wax+") or flags & _WRITES:
                kind, what = "writes", _text(args[0])
        elif event in _CHANGES:
            kind, what = "writes", _text(args[_CHANGES[event]])
        if kind and (self.importing or self._caused()):
            self._add(kind, str(Path.cwd() / what) if kind == "writes" else what)

    def _add(self, kind: str, what: str) -> None:
        if what not in self.seen[kind] and len(self.seen[kind]) < 200:
            self.seen[kind].append(what[:300])

    def _caused(self) -> bool:
        frame = sys._getframe(3)
        while frame is not None:
            if frame.f_code.co_filename.startswith(self.folder):
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False


def _text(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, str | bytes | os.PathLike) else str(value)


def _watched() -> dict[str, object]:
    parts = (name.rpartition(".") for name in _WATCHED)
    return {f"{module}.{name}": getattr(sys.modules.get(module), name, None) for module, _dot, name in parts}


def _routes(server: Any) -> dict[tuple[str, str], Any]:
    instance = server.PromptServer.instance
    if instance is None:
        return {}
    found = {(one.method, one.path): one.handler for one in instance.routes if hasattr(one, "handler")}
    for one in instance.app.router.routes():
        path = one.resource.canonical if one.resource is not None else ""
        found.setdefault((one.method, path), one.handler)
    return found


def main() -> None:
    """Run ComfyUI until the pack is imported."""
    core, base, name = sys.argv[1:4]
    folder = f"{base}/custom_nodes/{name}"
    watch = Watch(folder)
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if watch.importing and record.levelno >= logging.WARNING:
                messages.append(record.getMessage()[-2000:])

    sys.argv = ["main.py", "--cpu", "--disable-api-nodes", "--quick-test-for-ci", "--base-directory", base]
    sys.argv += ["--database-url", "sqlite:///:memory:"]
    sys.path[0] = core
    os.chdir(core)
    import comfy.options

    comfy.options.enable_args_parsing()
    import nodes  # type: ignore[import-not-found]
    import server  # type: ignore[import-not-found]
    import torch  # noqa: F401

    load: Callable[..., Any] = nodes.load_custom_node
    answer: dict[str, Any] = {}

    async def watched(path: str, *args: Any, **kwargs: Any) -> bool:
        if path != folder:
            return bool(await load(path, *args, **kwargs))
        types, routes, before = set(nodes.NODE_CLASS_MAPPINGS), set(_routes(server)), _watched()
        threads = set(threading.enumerate())
        watch.importing = True
        loaded = bool(await load(path, *args, **kwargs))
        until = time.monotonic() + WAIT_S
        for thread in set(threading.enumerate()) - threads:
            thread.join(max(0.0, until - time.monotonic()))
        watch.importing = False
        after = _watched()
        answer.update(
            loaded=loaded,
            types=sorted(set(nodes.NODE_CLASS_MAPPINGS) - types),
            routes=[_told(key, one, watch) for key, one in _routes(server).items() if key not in routes],
            replaced=[key for key in _WATCHED if before[key] is not None and before[key] is not after[key]],
        )
        return loaded

    nodes.load_custom_node = watched
    logging.getLogger().addHandler(Listener())
    sys.addaudithook(watch.hook)
    problem = ""
    try:
        runpy.run_path(f"{core}/main.py", run_name="__main__")
    except SystemExit as end:
        problem = "" if not end.code else f"ComfyUI ended with {end.code}"
    finally:
        modules = [str(getattr(one, "__file__", None) or "") for one in list(sys.modules.values())]
        used = sorted({one[len(watch.folder) :] for one in modules if one.startswith(watch.folder)})
        answer.update(watch.seen, messages=messages[-3:], files=used, problem=problem)
        Path(base, "found.json").write_text(json.dumps(answer), encoding="utf-8")
    os._exit(0)  # threads of the pack may go on for ever


def _told(key: tuple[str, str], handler: Any, watch: Watch) -> dict[str, Any]:
    code = getattr(getattr(handler, "__func__", handler), "__code__", None)
    file = code.co_filename if code else ""
    inside = file[len(watch.folder) :] if file.startswith(watch.folder) else ""
    return {"method": key[0], "path": key[1], "file": inside, "line": code.co_firstlineno if code else 0}


if __name__ == "__main__":
    main()
