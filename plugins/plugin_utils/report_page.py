"""Reports of workers as one page for a browser, which needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import duration, size
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.report import jobs_text
from jinja2 import Environment, FileSystemLoader, StrictUndefined

MOST_RENDERS = 30
_MOST_VIDEO = 20 * 2**20
_TEMPLATES = Path(__file__).resolve().parents[2] / "roles/verify/templates"
# Of a plot, in the units of its picture.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 140, 48, 8, 12, 12
# What the page asks of each report, and an older one may lack.
_EMPTY: Mapping[str, Any] = {
    **dict.fromkeys(("current", "previous", "attention"), ""),
    **{
        name: {}
        for name in ("release", "verified", "versions", "units", "services", "custom_nodes", "workflows", "gpu")
    },
    **{name: [] for name in ("sockets", "devices", "models")},
}


def with_renders(report: Mapping[str, Any], path: str, now: str) -> dict[str, Any]:
    """The report with the times of earlier renders, which the file has that it will replace, and of this one."""
    try:
        earlier = json.loads(Path(path).read_text(encoding="utf-8"))["renders"]
        earlier = [dict(one) for one in earlier]
    except (OSError, ValueError, KeyError, TypeError):
        earlier = []
    canary = report.get("canary") or {}
    if canary.get("rendered"):
        made = canary.get("workflow") or {}
        one = {"time": now, "release": report.get("current", ""), "canary_s": canary.get("seconds")}
        one |= {"workflow": made["name"], "workflow_s": made["seconds"]} if "seconds" in made else {}
        earlier.append({**one, "well": not canary.get("reason")})
    return {**report, "time": now, "renders": earlier[-MOST_RENDERS:]}


def report_page(reports: Sequence[Mapping[str, Any]], missing: Sequence[str], folder: str, now: str) -> str:
    """The page. ``missing`` are hosts that gave no report; ``folder`` has their videos."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=_size, duration=_duration, jobs=jobs_text)
    hosts = [_host(report, Path(folder)) for report in reports]
    hosts += [
        {"name": name, "there": False, "problems": ["it could not be reached, or verification broke off"]}
        for name in missing
    ]
    wrong = sum(bool(host["problems"]) for host in hosts)
    return environment.get_template("report.html.j2").render(hosts=hosts, wrong=wrong, now=now) + "\n"


def _size(count: Any) -> str:
    return size(count) if _number(count) else "unknown"


def _duration(seconds: Any) -> str:
    return duration(seconds) if _number(seconds) else "unknown"


def _host(report: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    canary = report.get("canary") or {}
    made = canary.get("workflow") or {}
    renders = report.get("renders") or []
    return {
        "name": report["host"],
        "there": True,
        "problems": report.get("problems") or [],
        "notes": [
            *(report.get("workflows_notes") or []),
            *([f"no workflow was rendered: {made['left_out']}"] if "left_out" in made else []),
        ],
        "report": {**_EMPTY, **report},
        "bytes": sum(one["bytes"] for one in report.get("models") or [] if _number(one["bytes"])),
        "canary": canary,
        "made": made if "seconds" in made else {},
        "video": _video(folder / f"canary-{report['host']}.mp4")
        if canary.get("rendered") and not canary.get("reason")
        else "",
        "plots": [
            plot
            for title, key in (("Canary", "canary_s"), ("Workflow", "workflow_s"))
            if (plot := _plot(title, [one for one in renders if _number(one.get(key))], key))
        ],
    }


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18


def _video(path: Path) -> str:
    """A video as an address of its own, or nothing where it is not there or too large for a page."""
    try:
        if path.stat().st_size > _MOST_VIDEO:
            return ""
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""


def _plot(title: str, renders: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Where points and lines of a plot are; nothing for fewer than two points, which the text already has."""
    if len(renders) < 2:
        return {}
    top = max(float(one[key]) for one in renders) * 1.1 or 1.0
    wide = (_WIDTH - _LEFT - _RIGHT) / (len(renders) - 1)
    points = [
        {
            "x": round(_LEFT + wide * number, 1),
            "y": round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * float(one[key]) / top, 1),
            "seconds": float(one[key]),
            "time": str(one.get("time", "")),
            "release": str(one.get("release", "")),
            "well": bool(one.get("well")),
        }
        for number, one in enumerate(renders)
    ]
    lines = [
        {"y": round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * part, 1), "seconds": top * part}
        for part in (0, 0.5, 1)
    ]
    names = {str(one.get("workflow")) for one in renders if key == "workflow_s"}
    return {
        "title": f"{title}{f' {next(iter(names))}' if len(names) == 1 else ''}, seconds of the last {len(points)} runs",
        "points": points,
        "lines": lines,
        "path": " ".join(f"{point['x']},{point['y']}" for point in points),
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
    }
