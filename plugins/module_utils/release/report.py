"""What a worker says of itself: its releases, services, sockets and versions."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.models import models
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.state import listeners
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.user_files import BROWSER, UserFilesError, untouched
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient, ComfyUIError
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.node_types import OBJECT_INFO_S, look_at_packs
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.check import problems as wrong_in
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.check import read, unknown_types
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import Schemas, from_object_info

_PROPERTIES = {
    "ActiveState": "active",
    "SubState": "sub",
    "UnitFileState": "enabled",
    "MainPID": "main_pid",
    "NRestarts": "restarts",
    "ActiveEnterTimestamp": "since",
    "MemoryCurrent": "memory_bytes",
}
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SHOWN, _LATEST_MS = 3, 4e12
_NUMBERS = {"main_pid", "restarts", "memory_bytes"}


def unit_states(units: Sequence[str], shown: str) -> dict[str, dict[str, Any]]:
    """State of each unit, from ``systemctl show --property=Id,…``. Those that it does not tell of have empty states."""
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.strip().split("\n\n")
    ]
    told = {block.get("Id", ""): block for block in blocks}
    return {unit: _unit_state(told.get(unit, {})) for unit in units}


def _unit_state(values: Mapping[str, str]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, key in _PROPERTIES.items():
        text = values.get(name, "")
        state[key] = (int(text) if text.isdigit() else None) if key in _NUMBERS else text
    return state


def versions(stats: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the running process, from ComfyUI's ``/system_stats``."""
    system = stats.get("system")
    system = system if isinstance(system, Mapping) else {}
    names = {"comfyui": "comfyui_version", "python": "python_version", "torch": "pytorch_version"}
    return {name: str(system[key]).split(" ", 1)[0] for name, key in names.items() if system.get(key)}


def devices(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Devices that ComfyUI renders on, with their memory in bytes."""
    found = stats.get("devices")
    return [
        {"name": device.get("name", ""), "type": device.get("type", ""), "memory_bytes": device.get("vram_total")}
        for device in (found if isinstance(found, list) else [])
        if isinstance(device, Mapping)
    ]


def jobs(client: ComfyUIClient) -> dict[str, Any]:
    """How many jobs run and wait, and how the last one ended."""
    last = None
    for id_, entry in client.last().items():
        status = entry.get("status") if isinstance(entry, dict) else None
        status = status if isinstance(status, dict) else {}
        messages = [message for message in status.get("messages") or [] if isinstance(message, list)]
        times = [entry[1].get("timestamp") for entry in messages if len(entry) > 1 and isinstance(entry[1], dict)]
        ended = max((at / 1000 for at in times if isinstance(at, int | float) and 0 < at < _LATEST_MS), default=0)
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ended)) if ended else ""
        last = {"id": id_, "status": str(status.get("status_str", "")), "finished": at}
    return {"queue": sum(map(len, client.queue().values())), "last_job": last}


def problems(report: Mapping[str, Any], allow_remote: bool) -> list[str]:
    """What is wrong with a worker; each says what was found and what to do."""
    found = [text for unit, state in report["units"].items() if (text := _unit_problem(unit, state))]
    if report["api_error"]:
        found.append(f"ComfyUI does not answer: {report['api_error']}")
    found.extend(
        f"{unit} does not answer: {error}; see journalctl -u {unit} on the host"
        for unit, error in report["services"].items()
        if error
    )
    if not report["current"]:
        found.append("no release is current: deploy")
    elif report["verified"].get("release") != report["current"]:
        verified = report["verified"].get("release") or "none"
        found.append(f"release {report['current']} runs, but {verified} was verified: deploy again")
    found.extend(report["custom_nodes_problems"])
    found.extend(_workflow_problem(name, wrong) for name, wrong in report["workflows"].items() if wrong)
    open_sockets = [s for s in report["sockets"] if not ip_address(s["address"]).is_loopback]
    if not allow_remote:
        found.extend(
            f"{s['unit']} listens on {s['address']}:{s['port']}, which others can reach: "
            "keep it on 127.0.0.1, or set comfyui_allow_remote: true if that is meant"
            for s in open_sockets
        )
    return found


def _unit_problem(unit: str, state: Mapping[str, Any]) -> str:
    if not state["active"]:
        return f"systemd tells nothing of {unit}: see systemctl status {unit} on the host"
    if not state["enabled"]:
        return f"{unit} has no unit file on the host: deploy"
    if state["active"] != "active":
        return f"{unit} is {state['active']}: see journalctl -u {unit} on the host, then deploy again"
    # The workers of a service are static: it starts them.
    return (
        ""
        if state["enabled"] in {"enabled", "static"}
        else f"{unit} does not start at boot ({state['enabled']}): deploy again"
    )


def _workflow_problem(name: str, wrong: Sequence[str]) -> str:
    more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
    return (
        f"workflow {name}: {'; '.join(wrong[:_SHOWN])}{more}. Where a model is not there yet, playbooks/models.yml "
        "waits for it; where nothing fetches it, add it to wan_models_files, or remove the workflow from "
        "workflows_extra; otherwise deploy again"
    )


def placed_workflows(root: Path, data: Path, client: ComfyUIClient) -> tuple[dict[str, list[str]], list[str]]:
    """What ComfyUI would refuse in each workflow that was placed and that nobody has changed, by its name; and notes.

    After a rollback, workflows are there that are of a later release. They are noted, and not looked at.
    """
    state = root / "workflows.json"
    try:
        placed = {Path(path).name: text for path, text in untouched(data, state).items() if path.startswith(BROWSER)}
        schemas = _with_any_checkpoint(from_object_info(client.object_info())) if placed else {}
    except (OSError, UserFilesError, ComfyUIError) as error:
        return {state.name: [str(error)]}, []
    wrong: dict[str, list[str]] = {}
    notes: list[str] = []
    later = _later_release(root)
    for name, text in sorted(placed.items()):
        try:
            api = read(json.loads(text), schemas)
        except (ConversionError, ValueError) as error:
            wrong[name] = [str(error)]
            continue
        lacks = unknown_types(api, schemas)
        if lacks and later:
            notes.append(
                f"workflow {name}: the release that runs lacks the node type {', '.join(lacks)}. "
                f"A later one is on the host, {later}, and may have it"
            )
        else:
            wrong[name] = wrong_in(api, schemas)
    return wrong, notes


def _later_release(root: Path) -> str:
    """The release that was built last, where another one runs: the host has gone back."""
    built = {path.parent.name: path.stat().st_mtime for path in root.glob("releases/*/release.json")}
    last = max(built, key=lambda name: built[name], default="")
    return "" if last == _link(root / "current") else last


def _with_any_checkpoint(schemas: Schemas) -> Schemas:
    """Checkpoints are their users' choice: a workflow names one as an example."""
    freed = {
        name: tuple(replace(one, choices=None) if one.name == "ckpt_name" else one for one in kind.inputs)
        for name, kind in schemas.items()
    }
    return {name: replace(kind, inputs=freed[name]) for name, kind in schemas.items()}


def worker_report(
    root: Path,
    units: Sequence[str],
    workers: Mapping[str, str],
    services: Mapping[str, str],
    data: Path | None = None,
    proc: Path = Path("/proc"),
) -> dict[str, Any]:
    """Read the state of a host.

    ``workers`` are addresses of ComfyUI, and ``services`` addresses that have to answer, both by unit. The workflows in
    ``data`` are compared with what the first worker offers.
    """
    units = list(dict.fromkeys([*units, *workers, *services]))
    current = _link(root / "current")
    report: dict[str, Any] = {
        "current": current,
        "previous": _link(root / "previous"),
        "releases": sorted(path.parent.name for path in root.glob("releases/*/release.json")),
        "release": _json(root / "current" / "release.json"),
        "verified": _json(root / "verified.json"),
        "units": unit_states(units, _show(units)),
        "sockets": [
            {key: entry[key] for key in ("address", "port", "unit", "command", "pid")}
            for entry in listeners(proc)
            if entry["unit"] in units
        ],
        "services": {unit: no_answer(url) for unit, url in services.items()},
        "models": models(data) if data else [],
        "api_error": "",
        "versions": {},
        "devices": [],
        "workers": {},
        "custom_nodes": {},
        "custom_nodes_problems": [],
        "workflows": {},
        "workflows_notes": [],
        "saved_workflows": None,
    }
    errors = []
    for unit, url in workers.items():
        try:
            asked = ComfyUIClient(url, timeout_s=10)
            stats = asked.system_stats()
            report["workers"][unit] = jobs(asked)
        except ComfyUIError as error:
            errors.append(str(error) if len(workers) == 1 else f"{unit}: {error}")
            continue
        report["versions"] = report["versions"] or versions(stats)
        report["devices"].extend(devices(stats))
        look = look_at_packs(root / "current", asked, unit)
        report["custom_nodes"] = look.packs
        report["custom_nodes_problems"] += [
            text for text in look.problems if text not in report["custom_nodes_problems"]
        ]
    report["api_error"] = "; ".join(errors)
    if report["versions"]:
        client = ComfyUIClient(next(iter(workers.values())), OBJECT_INFO_S)
        with suppress(ComfyUIError):
            report["saved_workflows"] = len(client.saved_workflows())
        if data:
            report["workflows"], report["workflows_notes"] = placed_workflows(root, data, client)
    return report


def no_answer(url: str) -> str:
    """Why an address on this host does not answer with status 200, or an empty string."""
    try:
        with _DIRECT.open(url, timeout=10) as answer:
            return "" if answer.status == HTTPStatus.OK else f"HTTP status {answer.status}"
    except urllib.error.HTTPError as error:
        return f"HTTP status {error.code}"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return str(getattr(reason, "strerror", "") or reason)


def _show(units: Sequence[str]) -> str:
    # pylint: disable-next=ansible-bad-function
    return subprocess.run(
        ["systemctl", "show", f"--property=Id,{','.join(_PROPERTIES)}", *units],
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def _link(path: Path) -> str:
    return path.readlink().name if path.is_symlink() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
