"""What a host has of faster attention, what of it has passed its test on the GPUs, and what is to be tried next.

Each variant has a folder of its own, which a worker names in its PYTHONPATH where there is a package in it:

    <root>/<key>/site/          the package; comfy-kitchen's is part of the release
    <root>/<key>/wheel.json     what it is; written when it is complete
    <root>/<key>/result.json    what the self-test said, and on which GPUs
    <root>/<key>/failure.json   why it could not be built, or fetched
    <root>/<key>/*.log          in full words

Nothing here writes, except that ``prune`` removes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.gpu import gpu_info
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.switch import SETTINGS, unpack

PASSED, FAILED, UNSUPPORTED, READY, MISSING = "passed", "failed", "unsupported", "ready", "missing"
SAGE, KITCHEN = "sage", "kitchen"
NAMES = {SAGE: "SageAttention", KITCHEN: "comfy-kitchen"}


# -- pure


def sorted_architectures(architectures: Sequence[str]) -> list[str]:
    """Each once, as numbers: 8.9 before 10.0."""
    return sorted(set(architectures), key=lambda text: tuple(int(part) for part in text.split(".")))


def covers(architectures: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether something that is compiled for ``architectures`` runs on all the ``wanted``."""
    return set(wanted) <= set(architectures)


def unsupported(method: Mapping[str, Any], wanted: Sequence[str]) -> str:
    """Why a method cannot serve GPUs of these architectures, or an empty string. Without a list, the test tells."""
    strange = [one for one in wanted if one not in method["architectures"]]
    if not strange or not method["architectures"]:
        return ""
    return (
        f"it has no kernels for compute capability {', '.join(strange)}, only for {', '.join(method['architectures'])}"
    )


def look(
    method: Mapping[str, Any], folders: Sequence[Mapping[str, Any]], here: Mapping[str, Any], nvcc: str, retry: bool
) -> dict[str, Any]:
    """How far a method is. ``folders`` are what ``read_folders`` gives, ``here`` are GPUs and driver.

    What has failed is left alone until GPUs, driver or compiler are others, or ``retry`` asks for it.
    """
    told = {
        "method": method["name"],
        "version": method["version"],
        "base": method["base"],
        "attention": method["attention"],
        "architectures": [],
        "key": "",
        "path": "",
        "reason": "",
        "log": "",
        "speedup": 0.0,
        "error": None,
    }
    if reason := unsupported(method, here["architectures"]):
        return {**told, "state": UNSUPPORTED, "reason": reason}
    fitting = [
        folder
        for folder in folders
        if (folder["wheel"] or folder["failure"]).get("base") == method["base"]
        and covers((folder["wheel"] or folder["failure"]).get("architectures", []), here["architectures"])
    ]
    states = [_of_folder(folder, here, nvcc, retry) for folder in fitting]
    best = min(states, key=lambda one: (PASSED, READY, FAILED, MISSING).index(one["state"]), default=None)
    if best is None:
        return {**told, "state": MISSING}
    if method["attention"] == KITCHEN:
        best["path"] = ""
    return {**told, **best}


def _of_folder(folder: Mapping[str, Any], here: Mapping[str, Any], nvcc: str, retry: bool) -> dict[str, Any]:
    wheel, result, failure = folder["wheel"], folder["result"], folder["failure"]
    told = {
        "key": folder["key"],
        "path": f"{folder['path']}/site",
        "architectures": wheel.get("architectures", []),
    }
    if not wheel:
        again = retry or failure.get("transient") or failure.get("nvcc", "") != nvcc
        reason, log = failure.get("reason", ""), failure.get("log", "")
        return {**told, "path": "", "state": MISSING if again else FAILED, "reason": reason, "log": log}
    same = result.get("gpus") == here["gpus"] and result.get("driver") == here["driver"]
    if not same or result.get("transient") or (retry and not result.get("passed")):
        return {**told, "state": READY, "reason": "; ".join(result.get("reasons", [])) if same else ""}
    return {
        **told,
        "state": PASSED if result.get("passed") else FAILED,
        "reason": "; ".join(result.get("reasons", [])),
        "log": "" if result.get("passed") else f"{folder['path']}/test.log",
        "speedup": result.get("speedup") or 0.0,
        "error": result.get("worst_error"),
    }


def choose(told: Sequence[Mapping[str, Any]], leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """What workers use now, what is to be done next, and whether all is done.

    Of those that have passed their test, the fastest is used; among equals the first.
    """
    passed = [one for one in told if one["state"] == PASSED]
    active: Mapping[str, Any] = max(passed, key=lambda one: float(one["speedup"]), default={})
    open_ones = [one for one in told if one["state"] in (READY, MISSING)]
    following = next((one for one in open_ones if one["method"] not in leave_out), {})
    return {"active": dict(active), "next": dict(following), "settled": not open_ones}


def sentence(told: Sequence[Mapping[str, Any]], active: Mapping[str, Any], idle: str) -> str:
    """One line for people: what attention is computed with, by how much it is faster, and what became of the others."""
    why = [
        f"{one['method']}: {one['speedup']:.2f} times"
        if one["state"] == PASSED
        else f"{one['method']}: {one['reason'] or 'not there yet'}" + (f" (log: {one['log']})" if one["log"] else "")
        for one in told
        if one != active
    ]
    if active:
        name = NAMES[active["attention"]]
        text = f"{name} {active['version']}, {active['speedup']:.2f} times as fast as torch's own"
        return text + (f"; {'; '.join(why)}" if why else "")
    return f"torch's own; {idle or '; '.join(why) or 'no method is asked for'}"


# -- the host


def read_folders(root: Path) -> list[dict[str, Any]]:
    """All folders with what is written in them."""
    return [
        {
            "key": folder.name,
            "path": str(folder),
            **{name: _json(folder / f"{name}.json") for name in ("wheel", "result", "failure")},
        }
        for folder in sorted(root.glob("*"))
        if folder.is_dir()
    ]


def compiler(nvcc: str) -> str:
    """Version of a compiler, for example 12.8, or an empty string where there is none."""
    try:
        # pylint: disable-next=ansible-bad-function
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    return found[1] if found else ""


def gpus_here(found: Mapping[str, Any]) -> dict[str, Any]:
    """What ``gpu_info`` found, as far as it matters here: the GPUs that the driver has, and why there may be none."""
    ready = [gpu for gpu in found["gpus"] if gpu["index"] is not None]
    driver = found["driver"]
    idle = ""
    if not found["gpus"]:
        idle = "the host has no NVIDIA GPU"
    elif not driver["ready"]:
        idle = (
            f"the driver does not work: {driver['error']}" if driver["error"] else "the host has no NVIDIA driver yet"
        )
    return {
        "gpus": sorted({gpu["name"] for gpu in ready}),
        "architectures": sorted_architectures([g["compute_capability"] for g in ready if g["compute_capability"]]),
        "driver": driver["loaded"] or driver["library"] or "",
        "idle": idle,
        # Before there is a driver, the table of chips says what a build would be for.
        "expected": sorted_architectures([g["compute_capability"] for g in found["gpus"] if g["compute_capability"]]),
    }


def state(
    root: Path,
    methods: Sequence[Mapping[str, Any]],
    nvcc: str,
    leave_out: Sequence[str],
    retry: bool,
    found: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """See the documentation of the module. ``found`` is what ``gpu_info`` gives, where the caller knows it."""
    found = found or gpu_info()
    here = gpus_here(found)
    version = compiler(nvcc)
    folders = read_folders(root)
    told = [
        look(method, folders, here, version, retry and method["name"] not in leave_out)
        for method in (methods if not here["idle"] else [])
    ]
    chosen = choose(told, leave_out)
    # A driver that is not there yet may come in the same run.
    settled = chosen["settled"] and (not here["idle"] or not found["gpus"])
    return {
        **here,
        **chosen,
        "settled": settled,
        "methods": told,
        "nvcc": version,
        "cores": len(os.sched_getaffinity(0)),
        "told": sentence(told, chosen["active"], here["idle"]),
    }


def prune(root: Path, releases: Path, bases: Sequence[str], check: bool) -> list[str]:
    """Remove folders that no release was verified with and no method in use has made."""
    kept = b"".join(_settings(file) for file in releases.glob(f"*/{SETTINGS}"))
    gone = [
        folder["key"]
        for folder in read_folders(root)
        if f"{folder['path']}/".encode() not in kept and (folder["wheel"] or folder["failure"]).get("base") not in bases
    ]
    for key in gone if not check else []:
        shutil.rmtree(root / key)
    return gone


def _settings(file: Path) -> bytes:
    try:
        config, _unused = unpack(file.read_bytes())
    except (OSError, ValueError, TypeError, LookupError):
        return b""
    return b"".join(item.content for item in config)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
