#!/usr/bin/env python3
"""The closing words of ./deploy --lab: summary.py NAME STATE_FOLDER OUTPUT_FOLDER "STAGE=SECONDS ..."."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BROWSER_PORT = 8188


def changes(log: str) -> int:
    """How much a playbook changed, from the recap in Ansible's log."""
    return sum(int(count) for count in re.findall(r"\| \S+ +: ok=\d+ +changed=(\d+)", log))


def duration(seconds: int) -> str:
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"


def table(rows: Mapping[str, Any]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in rows.items()]


def installed(report: Mapping[str, Any]) -> dict[str, str]:
    release = report["release"]
    return {
        **report["versions"],
        "release": f"{release['id']} ({release['variant']}, {release['lane']})",
        "source": f"{release['source']}, commit {release['commit'][:10]}",
    }


def summary(
    name: str, report: Mapping[str, Any], changed: int, stages: Mapping[str, int], state: Path, video: Path
) -> str:
    ports = [socket["port"] for socket in report["sockets"] if re.fullmatch(r"comfyui(@\d+)?\.service", socket["unit"])]
    ssh = f"ssh -F {shlex.quote(str(state / 'ssh_config'))}"
    made = report["canary"].get("workflow") or {}
    drawn = made.get("details") or report["canary"].get("details", {})
    size = f"{drawn['width']}x{drawn['height']}, {drawn['frames']} frames" if drawn else ""
    size += f", by {made['name']}" if "name" in made else ""
    return "\n".join(
        [
            "",
            f"{name} is a ComfyUI worker. It runs without a GPU.",
            "Nothing changed: all of it was there already." if not changed else f"Changes: {changed}.",
            "",
            "Installed",
            *table(installed(report)),
            "",
            "Time",
            *table({stage: duration(seconds) for stage, seconds in {**stages, "in all": sum(stages.values())}.items()}),
            "",
            "What now",
            *table(
                {
                    **({"video": str(video), "": size} if drawn else {}),
                    "report": str(video.with_name("report.html")),
                    "tunnel": f"{ssh} -N -L {BROWSER_PORT}:127.0.0.1:{ports[0]} {name}",
                    "browser": f"http://127.0.0.1:{BROWSER_PORT} while the tunnel is open",
                    "log in": f"{ssh} {name}",
                    "stop": "./deploy --lab-stop",
                    "remove": "./deploy --lab-remove",
                }
            ),
        ]
    )


def main() -> None:
    name, state, output, times = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    stages = {stage: int(seconds) for stage, _, seconds in (item.partition("=") for item in times.split())}
    report = json.loads((output / f"report-{name}.json").read_text())
    changed = changes((output / "deploy.log").read_text())
    print(summary(name, report, changed, stages, state, output / f"canary-{name}.mp4"))


if __name__ == "__main__":
    main()
