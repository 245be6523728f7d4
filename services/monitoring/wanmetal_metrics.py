"""Writes what is known of this host for Prometheus: to a file that its node exporter reads. A timer runs it.

usage: wanmetal-metrics SETTINGS FILE. SETTINGS is a file in JSON, made by the role monitoring. It needs the standard
library alone, and may read nothing but what all services may.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METRICS = {
    "wanmetal_release_info": "The release that runs.",
    "wanmetal_release_built_timestamp_seconds": "When the release that runs was built.",
    "wanmetal_releases": "Complete releases on the host.",
    "wanmetal_attention_info": "What attention is computed with: torch's own, or the build of SageAttention.",
    "wanmetal_workers_wanted": "Workers of ComfyUI that the host is to have.",
    "wanmetal_worker_up": "Whether the worker answers.",
    "wanmetal_worker_queue": "Jobs that the worker has, by state: running or pending.",
    "wanmetal_worker_last_job_seconds": "How long the worker's last job took.",
    "wanmetal_worker_last_job_ok": "Whether the worker's last job succeeded.",
    "wanmetal_handler_up": "Whether the handler answers, and can do jobs.",
    "wanmetal_handler_jobs": "Jobs in the handler's record by status; those that ended stay for handler_keep_hours.",
    "wanmetal_queue_up": "Whether the queue of the fleet answers.",
    "wanmetal_queue_jobs": "Jobs of the queue by status; those that ended stay for queue_keep_hours.",
    "wanmetal_queue_oldest_waiting_seconds": "How long the job that waits longest has waited.",
    "wanmetal_queue_hosts": "Hosts that fetch jobs from the queue.",
    "wanmetal_certificate_end_timestamp_seconds": "When the certificate that the queue serves ends.",
    "wanmetal_models_missing": "Model files that the last deploy asked for and that are not whole on the disk.",
    "wanmetal_models_missing_bytes": "Bytes that these files lack, as far as their sizes are known.",
    "wanmetal_verified_timestamp_seconds": "When a switch last rendered with the right pixels.",
    "wanmetal_verified_release_runs": "Whether the release that runs is the one that was verified.",
    "wanmetal_verify_timestamp_seconds": "When ./deploy verify last looked at the host.",
    "wanmetal_verify_problems": "Problems that it found.",
}
"""All that this program writes, each a gauge, with its help."""

_ASK_S = 5.0
_MOST_BYTES = 8 * 2**20
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_STATUSES = {"completed", "failed", "cancelled", "timedOut", "inProgress", "inQueue"}

Sample = tuple[str, Mapping[str, str], float]


def ask(url: str) -> Any:
    """What an address of this host answers, or nothing."""
    try:
        with _DIRECT.open(url, timeout=_ASK_S) as answer:
            return json.loads(answer.read(_MOST_BYTES))
    except (OSError, ValueError, http.client.HTTPException, RecursionError):
        return None


def read(path: Path) -> dict[str, Any]:
    """A file of ours, or an empty mapping."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def changed(path: Path) -> float | None:
    """When a file was last written."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def release(root: Path) -> Iterator[Sample]:
    """What runs, and what was verified."""
    current = root / "current"
    name = os.path.basename(os.readlink(current)) if current.is_symlink() else ""  # noqa: PTH115, PTH119 (Python 3.10)
    built = changed(current / "release.json")
    yield "wanmetal_releases", {}, len(list(root.glob("releases/*/release.json")))
    if name and built:
        comfyui = read(current / "release.json").get("comfyui")
        version = str(comfyui.get("version", "")) if isinstance(comfyui, dict) else str(comfyui or "")
        yield "wanmetal_release_info", {"release": name, "comfyui": version}, 1
        yield "wanmetal_release_built_timestamp_seconds", {}, built
    verified, when = read(root / "verified.json"), changed(root / "verified.json")
    yield "wanmetal_verified_release_runs", {}, float(bool(name) and verified.get("release") == name)
    if when:
        yield "wanmetal_verified_timestamp_seconds", {}, when
    report = read(root / "verify.json")
    if isinstance(problems := report.get("problems"), int) and (when := changed(root / "verify.json")):
        yield "wanmetal_verify_timestamp_seconds", {}, when
        yield "wanmetal_verify_problems", {}, problems


def workers(wanted: Mapping[str, str]) -> Iterator[Sample]:
    """How each ComfyUI is."""
    yield "wanmetal_workers_wanted", {}, len(wanted)
    for name, url in wanted.items():
        label = {"worker": name}
        queue = ask(f"{url}/queue")
        good = isinstance(queue, dict) and all(
            isinstance(queue.get(key), list) for key in ("queue_running", "queue_pending")
        )
        yield "wanmetal_worker_up", label, float(good)
        if good:
            yield "wanmetal_worker_queue", {**label, "state": "running"}, len(queue["queue_running"])
            yield "wanmetal_worker_queue", {**label, "state": "pending"}, len(queue["queue_pending"])
            yield from last_job(label, ask(f"{url}/history?max_items=1"))


def last_job(label: Mapping[str, str], history: Any) -> Iterator[Sample]:
    """How the last job of a ComfyUI went, out of its messages."""
    try:
        [job] = history.values()
        at = {kind: data["timestamp"] / 1000 for kind, data in job["status"]["messages"] if "timestamp" in data}
        good = job["status"]["status_str"] == "success"
        end = max(at[kind] for kind in at if kind != "execution_start")
        seconds = round(end - at["execution_start"], 3)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return
    yield "wanmetal_worker_last_job_seconds", label, seconds
    yield "wanmetal_worker_last_job_ok", label, float(good)


def jobs(service: str, found: Any) -> Iterator[Sample]:
    """Whether a service of ours does jobs, and how many it has."""
    good = isinstance(found, dict) and isinstance(found.get("jobs"), dict)
    yield f"wanmetal_{service}_up", {}, float(good)
    if good:
        for status in sorted(_STATUSES & found["jobs"].keys()):
            yield f"wanmetal_{service}_jobs", {"status": status}, _number(found["jobs"][status])


def _number(found: Any) -> float:
    """A number of another program's, which may be anything."""
    return float(found) if isinstance(found, int | float) and abs(found) < 2**63 else 0.0


def queue(url: str) -> Iterator[Sample]:
    """The queue of the fleet."""
    found = ask(f"{url}/counts")
    yield from jobs("queue", found)
    if isinstance(found, dict):
        yield "wanmetal_queue_oldest_waiting_seconds", {}, _number(found.get("oldestWaiting"))
        yield "wanmetal_queue_hosts", {}, _number(found.get("hosts"))


def certificate(host: str, port: int) -> Iterator[Sample]:
    """When the certificate ends that is served: whatever lies on the disk, clients see this one."""
    try:
        pem = ssl.get_server_certificate((host, port), timeout=_ASK_S)
        command = ["openssl", "x509", "-noout", "-enddate"]
        said = subprocess.run(command, input=pem, capture_output=True, text=True, check=True).stdout
        end = ssl.cert_time_to_seconds(said.strip().partition("=")[2])
    except (OSError, ValueError, subprocess.CalledProcessError):
        return
    yield "wanmetal_certificate_end_timestamp_seconds", {}, end


def models(wanted: Mapping[str, int | None]) -> Iterator[Sample]:
    """What is missing of the models, by their paths and sizes."""
    missing, lacking = 0, 0
    for path, size in wanted.items():
        try:
            found = os.stat(path).st_size  # noqa: PTH116 (many files)
        except FileNotFoundError:
            found = -1
        except OSError:  # behind a link to a folder that the services' group may not look into
            continue
        if found < 0 or (size and found < size):
            missing += 1
            lacking += max(0, (size or 0) - max(found, 0))
    yield "wanmetal_models_missing", {}, missing
    yield "wanmetal_models_missing_bytes", {}, lacking


def samples(settings: Mapping[str, Any]) -> Iterator[Sample]:
    """All of it; what a host does not have is left out."""
    if settings["workers"]:
        yield from release(Path(settings["root"]))
        yield from workers(settings["workers"])
        yield "wanmetal_attention_info", {"attention": settings["attention"]}, 1
        yield from models(settings["models"])
    if settings["handler"]:
        yield from jobs("handler", ask(f"{settings['handler']}/health"))
    if settings["queue"]:
        yield from queue(settings["queue"])
    if settings["certificate"]:
        host, _unused, port = settings["certificate"].rpartition(":")
        yield from certificate(host.strip("[]"), int(port))


def text(found: Iterator[Sample]) -> str:
    """The samples in Prometheus' text format, which wants those of a name together."""
    lines: dict[str, list[str]] = {}
    for name, labels, value in found:
        given = ",".join(f'{key}="{_escaped(inner)}"' for key, inner in sorted(labels.items()))
        lines.setdefault(name, []).append(f"{name}{{{given}}} {value:.17g}" if given else f"{name} {value:.17g}")
    return "".join(
        f"# HELP {name} {METRICS[name]}\n# TYPE {name} gauge\n" + "".join(f"{line}\n" for line in lines[name])
        for name in lines
    )


def _escaped(value: str) -> str:
    return re.sub(r'[\\"]', r"\\\g<0>", value).replace("\n", " ")


def main() -> int:
    """Write the file in one go, so that nobody reads half of it."""
    settings, target = (Path(argument) for argument in sys.argv[1:])
    fresh = target.with_name(f"{target.name}.{os.getpid()}")

    fresh.write_text(text(samples(json.loads(settings.read_text(encoding="utf-8")))), encoding="utf-8")
    fresh.replace(target)

    return 0


if __name__ == "__main__":
    sys.exit(main())
