"""The gate of node packs: what a pack does while it is imported, what its code could do, and the verdict."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.packs import probe, static

PASSES, REFUSED = "passes", "refused"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache", "/etc/passwd")
_BASE = "/scratch"
# Programs that libraries of the environment ask about themselves and the machine, and that change nothing.
_HARMLESS = ("ffmpeg", "ffprobe", "ldconfig", "uname", "nvidia-smi", "lscpu", "fc-list", "fc-match")
_KINDS = {
    "connections": "opens connections while it is imported",
    "processes": "starts programs while it is imported",
    static.EVALUATES: "evaluates text that its functions are given",
    static.INSTALLS: "installs software at run time",
    static.REMOTE_CODE: "runs Python that comes with a model",
    static.ROUTE: "lets anybody who reaches ComfyUI end it or download through it",
    "replaces": "replaces functions of the whole process",
    "import": "is not imported",
    "accepted": "no longer does what is accepted of it",
}


class GateError(Exception):
    """Why a pack could not be tried, with what to do."""


def sandboxed(python: Path, core: Path, pack: Path, name: str, scratch: Path) -> list[str]:
    """Return the command that tries a pack: no network, code that only can be read, nothing else of this machine."""
    environment = python.parent.parent
    base = Path(os.path.realpath(python)).parent.parent
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    for path in [*_SYSTEM, str(base)]:
        command += ["--ro-bind-try", path, path]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - one of the sandbox's own
    for folder in (environment, core):
        command += ["--ro-bind", str(folder), str(folder)]
    command += ["--bind", str(scratch), _BASE, "--ro-bind", str(pack), f"{_BASE}/custom_nodes/{name}"]
    path = f"{environment}/bin:/usr/local/bin:/usr/bin:/bin"
    settings = {"HOME": f"{_BASE}/home", "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    settings |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for key, value in settings.items():
        command += ["--setenv", key, value]
    return [*command, "--", str(python), f"{_BASE}/probe.py", str(core), _BASE, name]


def tried(python: Path, core: Path, pack: Path, name: str, timeout: int) -> dict[str, Any]:
    """Import a pack in the sandbox and return what it did."""
    if shutil.which("bwrap") is None:
        raise GateError("bubblewrap (bwrap) is not installed. On Debian and Ubuntu: apt-get install bubblewrap")
    with tempfile.TemporaryDirectory(prefix="wanmetal-gate-") as folder:
        scratch = Path(folder)
        for made in ("home", "custom_nodes", "models", "input", "output", "temp", "user"):
            (scratch / made).mkdir()
        (scratch / "probe.py").write_text(inspect.getsource(probe), encoding="utf-8")
        command = sandboxed(python, core, pack, name, scratch)
        try:
            # pylint: disable-next=ansible-bad-function
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=timeout, errors="replace"
            )
        except subprocess.TimeoutExpired:
            return {"loaded": False, "problem": f"it was not imported within {timeout} seconds"}
        found = scratch / "found.json"
        if not found.is_file():
            said = done.stderr.strip()[-1500:] or f"status {done.returncode}"
            if "bwrap:" in said:
                raise GateError(f"the sandbox cannot be made: {said}. Namespaces have to be allowed, or run it as root")
            return {"loaded": False, "problem": f"ComfyUI ended before the pack was imported: {said}"}
        answer: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    if "loaded" not in answer and not answer.get("problem"):
        answer["problem"] = f"ComfyUI did not come to the import: {done.stderr.strip()[-1500:]}"
    return answer


def report(pack: Path, name: str, did: Mapping[str, Any], accepted: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """Return the verdict with its reasons, and what is worth knowing besides."""
    modules, unread = static.read(pack)
    reasons = [*_of_import(did, f"{_BASE}/custom_nodes/{name}"), *_of_code(modules, did)]
    used_unread = [path for path in unread if path in did.get("files", ())]
    reasons += [{"kind": static.EVALUATES, "where": path, "what": "cannot be read as Python"} for path in used_unread]
    left, allowed = [], []
    for reason in reasons:
        why = next((one["why"] for one in accepted if _accepts(one, reason)), "")
        (allowed.append({**reason, "accepted": why}) if why else left.append(reason))
    needless = [one for one in accepted if not any(_accepts(one, reason) for reason in reasons)]
    left += [
        {"kind": "accepted", "where": one["where"], "what": f"accepts {one['kind']}, which the pack does not do"}
        for one in needless
    ]
    return {
        "verdict": REFUSED if left else PASSES,
        "why": in_words(left),
        "reasons": left,
        "accepted": allowed,
        "notes": sorted(set(_notes(modules, did, f"{_BASE}/custom_nodes/{name}/"))),
        "node_types": len(did.get("types", ())),
    }


def _accepts(one: Mapping[str, str], reason: Mapping[str, str]) -> bool:
    file = reason["where"].partition(":")[0]
    return one["kind"] == reason["kind"] and (file == one["where"] or file.startswith(f"{one['where'].rstrip('/')}/"))


def _of_import(did: Mapping[str, Any], folder: str) -> Iterator[dict[str, str]]:
    if not did.get("loaded"):
        said = [did.get("problem", ""), *did.get("messages", ())]
        lines = [line for text in said for line in str(text).strip().splitlines()[-1:] if line.strip()]
        yield {"kind": "import", "where": "__init__.py", "what": " / ".join(lines)[:400] or "no node types"}
    for kind in ("connections", "processes"):
        for what in did.get(kind, ()):
            if kind == "connections" or not _harmless(what):
                yield {"kind": kind, "where": "while it is imported", "what": what[:200].replace(folder, ".")}
    for what in did.get("replaced", ()):
        yield {"kind": "replaces", "where": "while it is imported", "what": what}


def _harmless(command: str) -> str:
    """Return which of the harmless programs a command starts, or an empty text."""
    program = Path(command.split(" ", 1)[0]).name
    return next((one for one in _HARMLESS if program == one or program.startswith(f"{one}-")), "")


def _of_code(modules: Sequence[static.Module], did: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    found = [one for one in static.findings(modules) if one.kind in static.REFUSED]
    for route in did.get("routes", ()):
        found += static.of_route(modules, route["method"], route["path"], route["file"], route["line"])
    unused = {module.path for module in modules if not module.used} - set(did.get("files", ()))
    for one in sorted(set(found), key=lambda finding: (finding.kind, finding.where)):
        if one.file not in unused:
            yield {"kind": one.kind, "where": one.where, "what": one.what}


def _notes(modules: Sequence[static.Module], did: Mapping[str, Any], folder: str) -> Iterator[str]:
    counts: dict[str, int] = {}
    unused = {module.path for module in modules if not module.used} - set(did.get("files", ()))
    for one in static.findings(modules):
        if one.kind not in static.REFUSED:
            counts[one.what] = counts.get(one.what, 0) + 1
        elif one.file in unused:
            yield f"{one.where}, which is not imported: {one.kind}, {one.what}"
    for what, count in counts.items():
        yield f"{count} times {what}"
    for what in did.get("processes", ()):
        if program := _harmless(what):
            yield f"starts {program} while it is imported"
    for path in did.get("writes", ()):
        if path.startswith(folder):
            yield f"tries to write into its folder: {path.removeprefix(folder)}"
        elif path != "/dev/null" and not path.startswith(("/tmp", "/proc")):  # noqa: S108
            yield f"writes while it is imported: {path.replace(_BASE + '/home', '~').removeprefix(_BASE + '/')}"
    for where in did.get("evaluates", ()):
        yield f"evaluates a text of its own while it is imported: {where}"
    for route in did.get("routes", ()):
        yield f"route {route['method']} {route['path']}"


def in_words(reasons: Iterable[Mapping[str, str]]) -> str:
    """Return why a pack is refused, in one line."""
    by_kind: dict[str, list[str]] = {}
    for one in reasons:
        by_kind.setdefault(one["kind"], []).append(one["where"])
    told = (f"{_KINDS.get(kind, kind)} ({', '.join(sorted(set(where))[:2])})" for kind, where in by_kind.items())
    return "; ".join(told)
