"""A worker's report as lines for a terminal."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.stages import wrapped

_GIB = 2**30
_WIDTH = 72
"""That of a terminal of 80 columns, less Ansible's indentation."""


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Lay out a report. ``report`` is what worker_report returns, with ``host``, ``canary`` and ``problems``."""
    release = report.get("release", {})
    rows = [
        ("release", (report.get("current") or "none") + (f" ({_made_from(release)})" if release else "")),
        ("to go back to", report.get("previous") or "nothing yet"),
        (
            "versions",
            ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items()) or "unknown",
        ),
        ("renders on", ", ".join(_device(device) for device in report.get("devices", [])) or "unknown"),
    ]
    if packs := report.get("custom_nodes"):
        rows.append(("node packs", ", ".join(_pack(name, pack) for name, pack in packs.items())))
    if workflows := report.get("workflows"):
        wrong = sum(bool(lines) for lines in workflows.values())
        rows.append(("workflows", f"{len(workflows)}, {f'{wrong} of them wrong' if wrong else 'all of them right'}"))
    rows += _driver(report.get("gpu") or {})
    rows += [(unit, _unit(state)) for unit, state in report.get("units", {}).items()]
    rows += [
        (f"jobs of {unit.removesuffix('.service')}", jobs_text(found))
        for unit, found in report.get("workers", {}).items()
    ]
    rows += [
        (f"{unit.removesuffix('.service')} answers", f"no: {error}" if error else "yes")
        for unit, error in report.get("services", {}).items()
    ]
    rows.append(
        ("listens on", ", ".join(f"{s['address']}:{s['port']}" for s in report.get("sockets", [])) or "nothing")
    )
    if report.get("attention"):
        rows.append(("attention", report["attention"]))
    rows.append(("test render", _canary(report.get("canary", {}))))
    if made := report.get("canary", {}).get("workflow"):
        rows.append(("has rendered", _workflow(made)))
    width = max(len(name) for name, _unused in rows)
    lines = [f"{report.get('host', 'worker')}"]
    for name, value in rows:
        lines += wrapped(f"  {name:<{width}}  {value}", _WIDTH)
    problems = report.get("problems", [])
    for text in problems:
        lines += wrapped(f"  PROBLEM: {text}", _WIDTH, 4)
    return lines if problems else [*lines, "  no problems"]


def jobs_text(found: Mapping[str, Any]) -> str:
    """Lay out what a worker has to do, and did last."""
    text, last = f"{found['queue']} in its queue", found["last_job"]
    if not last:
        return f"{text}, none has ended yet"
    at = f", {last['finished']}" if last["finished"] else ""
    return f"{text}; last {last['id']}: {last['status'] or 'unknown'}{at}"


def _workflow(made: Mapping[str, Any]) -> str:
    if "left_out" in made:
        return f"no workflow: {made['left_out']}"
    return f"{made['name']}, {_video(made['details'])}, {made['seconds']:.1f} s"


def _made_from(release: Mapping[str, Any]) -> str:
    return (
        f"ComfyUI {release.get('comfyui')} by {release.get('source')}, {release.get('variant')}, {release.get('lane')}"
    )


def _pack(name: str, pack: Mapping[str, Any]) -> str:
    seconds = pack.get("seconds")
    return name + ("" if seconds is None else f" {seconds:.1f} s")


def _device(device: Mapping[str, Any]) -> str:
    memory = device.get("memory_bytes")
    return f"{device.get('name')}" + (f" ({memory / _GIB:.0f} GiB)" if memory else "")


def _driver(gpu: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Driver and GPUs, where the host has been asked for them."""
    if not gpu:
        return []
    driver = gpu["driver"]
    text = f"{driver['loaded']}, {driver['loaded_modules'] or 'of another machine'}" if driver["loaded"] else "none"
    text += f", for CUDA up to {driver['cuda']}" if driver["cuda"] else ""
    memory = [f" ({device['vram_mb'] / 1024:.0f} GiB)" if device["vram_mb"] else "" for device in gpu["devices"]]
    devices = Counter(device["name"] + each for device, each in zip(gpu["devices"], memory, strict=True))
    cards = ", ".join(f"{times} x {name}" if times > 1 else name for name, times in devices.items())
    return [("driver", text), ("GPUs", cards or "none that works")]


def _unit(state: Mapping[str, Any]) -> str:
    text = f"{state.get('active')} ({state.get('sub')}), {state.get('enabled') or 'no unit file'}"
    if state.get("since"):
        text += f", since {state['since']}"
    if state.get("restarts"):
        text += f", {state['restarts']} restarts"
    return text + (f", {state['memory_bytes'] / _GIB:.1f} GiB" if state.get("memory_bytes") else "")


def _canary(canary: Mapping[str, Any]) -> str:
    if canary.get("reason"):
        return f"failed: {canary['reason']}"
    if not canary.get("rendered"):
        return "not rendered"
    details = canary.get("details", {})
    what = _video(details) if "frames" in details else "image"
    return f"{what}, right pixels, {canary.get('seconds', 0):.1f} s"


def _video(details: Mapping[str, Any]) -> str:
    return f"{details['width']}x{details['height']}, {details['frames']} frames at {details['fps']:g} fps"


def closing_lines(report: Mapping[str, Any], ssh: Mapping[str, Any] | None = None, *, local: bool = False) -> list[str]:
    """Say what runs on a host and how to reach it."""
    host, problems = report["host"], report["problems"]
    if not report.get("current"):
        return [f"{host} has no ComfyUI yet"]
    state = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "ready"
    units = {unit: _ports(report, unit) for unit in report["units"] if _ports(report, unit)}
    earlier = _earlier(report)
    rows = [
        ("release", report["current"]),
        *([("go back to", ", ".join(earlier))] if earlier else []),
        *(
            (unit.removesuffix(".service"), f"http://127.0.0.1:{', '.join(map(str, ports))}")
            for unit, ports in units.items()
        ),
    ]
    if (found := report.get("saved_workflows")) is not None:
        rows.append(("workflows", str(found or "none yet: they come with models, see docs/models.md")))
    if not local and units:
        forwards = " ".join(f"-L {port}:127.0.0.1:{port}" for ports in units.values() for port in ports)
        rows.append(("tunnel", f"{_ssh(host, ssh or {})} -N {forwards}"))
        rows.append(("browser", f"http://127.0.0.1:{next(iter(units.values()))[0]} while the tunnel is open"))
    rows += [("problem", text) for text in problems]
    width = max(len(name) for name, _unused in rows)
    return [f"{host}: {state}", *(f"  {name:<{width}}  {value}" for name, value in rows)]


def _earlier(report: Mapping[str, Any]) -> list[str]:
    """Releases to go back to; the first is the one that a rollback without a name takes."""
    others = [name for name in report.get("releases", []) if name not in (report["current"], report.get("previous"))]
    return [*([report["previous"]] if report.get("previous") else []), *others]


def _ports(report: Mapping[str, Any], unit: str) -> list[int]:
    name = unit.removesuffix(".service")
    return sorted(
        {s["port"] for s in report.get("sockets", []) if s["unit"].partition(".")[0].partition("@")[0] == name}
    )


def _ssh(host: str, to: Mapping[str, Any]) -> str:
    words = ["ssh", *([to["options"]] if to.get("options") else [])]
    words += ["-i", shlex.quote(str(to["key"]))] if to.get("key") else []
    words += ["-p", str(to["port"])] if str(to.get("port") or 22) != "22" else []
    target = to.get("address") or host
    return " ".join([*words, f"{to['user']}@{target}" if to.get("user") else target])
