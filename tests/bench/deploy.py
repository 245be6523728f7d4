#!/usr/bin/env python3
"""How long a deploy takes: the first one by stage, an unchanged one as a multiple of a ping, and a switch's outage.

Of a first one with models, it tells how much longer it takes than the build or the models alone.
Makes a lab host of its own with an empty package cache, and removes it; with --host NAME only the unchanged deploy is
measured, once, on a lab host that is there. Prints a table and writes it as JSON to reports/bench-deploy.json.
Run it as: .venv/test/bin/python -m tests.bench.deploy
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

REPEATS = 5
MODEL_BYTES, MODEL_LIMIT = 200_000_000, "5M"
"""Of the download that takes about as long as the build."""

_POLL = """
import sys, time, urllib.request
end = time.time() + float(sys.argv[1])
while time.time() < end:
    try:
        urllib.request.urlopen("http://127.0.0.1:8188/system_stats", timeout=1).read()
        print(f"{time.time():.3f}", flush=True)
    except OSError:
        pass
    time.sleep(0.02)
"""


def stages(output: str) -> dict[str, float]:
    """Seconds by stage, from the table that the stages callback prints."""
    rows = re.findall(r"^  (\S.*?)\s{2,}([\d.]+) s  (?:\d+ changed|unchanged|nothing changed)$", output, re.MULTILINE)
    return {name: float(seconds) for name, seconds in rows}


def slowest(output: str) -> dict[str, float]:
    """The slowest tasks, from the same table."""
    rows = re.findall(r"^\s+([\d.]+) s  (\S+: .*)$", output, re.MULTILINE)
    return {task: float(seconds) for seconds, task in rows}


def longest_gap(times: list[float]) -> float:
    """The longest time between two answers, in seconds."""
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


def median_of(command: list[str], repeats: int = REPEATS) -> float:
    """Median seconds of a command, which changes nothing."""
    taken = []
    for _ in range(repeats):
        begin = time.monotonic()
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True).stdout
        taken.append(time.monotonic() - begin)
        assert not re.search(r" changed=[1-9]", output), output
    return statistics.median(taken)


def unchanged(host: str, repeats: int) -> dict[str, float]:
    """A ping, and a deploy that changes nothing."""
    from tests.worker import PROJECT, Worker  # not before: it reads WANMETAL_LAB_DIR

    inventory = Worker(host).inventory
    ping_s = median_of(["ansible", "gpu_hosts", *inventory, "--module-name=ansible.builtin.ping"], repeats)
    unchanged_s = median_of(["ansible-playbook", str(PROJECT / "site.yml"), *inventory], repeats)
    return {
        "ping_s": round(ping_s, 2),
        "unchanged_deploy_s": round(unchanged_s, 2),
        "unchanged_deploy_pings": round(unchanged_s / ping_s, 1),
    }


def beside(worker: Any) -> dict[str, float]:
    """First deploys of a host, with packages in the cache: the build alone, the models alone, and both."""
    from tests.origin.origin import Blob, Origin

    def first(playbook: str, *arguments: str) -> float:
        worker.remove()
        worker.up()
        begin = time.monotonic()
        worker.playbook(playbook, *arguments)
        return time.monotonic() - begin

    gateway = worker.ssh("ip route show default").split()[2]
    with Origin(bind=gateway, cdn_bind=gateway) as origin:
        blob = origin.add(Blob("slow.safetensors", MODEL_BYTES))
        file = {
            "name": blob.name,
            "folder": "loras",
            "url": origin.hub_url(blob.name),
            "bytes": blob.size,
            "sha256": blob.sha256,
        }
        models = ("-e", json.dumps({"wan_models_files": [file], "wan_models_limit": MODEL_LIMIT}))
        alone = first("site.yml"), first("playbooks/models.yml", *models)
        both = first("site.yml", *models)
    return {
        "build_alone_s": round(alone[0], 1),
        "models_alone_s": round(alone[1], 1),
        "both_s": round(both, 1),
        "both_of_the_longer": round(both / max(alone), 2),
    }


def measure() -> dict[str, object]:
    """Deploy to a fresh host, and measure."""
    from tests.worker import PROJECT, Worker, run

    worker = Worker("bench")
    worker.up()
    try:
        site = ["ansible-playbook", str(PROJECT / "site.yml"), *worker.inventory]
        begin = time.monotonic()
        first = run(*site).stdout
        first_s = time.monotonic() - begin
        second = unchanged(worker.name, REPEATS)
        poller = subprocess.Popen(
            ["ssh", "-F", str(Path(os.environ["WANMETAL_LAB_DIR"]) / "ssh_config"), worker.name, "python3", "-", "120"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert poller.stdin
        assert poller.stdout
        poller.stdin.write(_POLL)
        poller.stdin.close()
        run(*site, "-e", "comfyui_max_upload_mb=101")
        poller.terminate()
        outage_s = longest_gap([float(line) for line in poller.stdout.read().split()])
        started = worker.ssh("sudo sh -c 'date +%s.%N; systemctl restart comfyui; date +%s.%N'").split()
        security = worker.ssh("sudo systemd-analyze security --no-pager comfyui.service")
        return {
            "first_deploy_s": round(first_s, 1),
            "first_deploy_stages_s": stages(first),
            "first_deploy_slowest_s": slowest(first),
            **second,
            "switch_outage_s": round(outage_s, 2),
            "comfyui_own_start_s": round(float(started[-1]) - float(started[-2]), 2),
            "exposure": float(re.findall(r"exposure level for \S+: ([\d.]+)", security)[0]),
            **beside(worker),
        }
    finally:
        worker.remove()


def main() -> None:
    """Measure, and show the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", metavar="NAME", help="a lab host that is deployed already")
    host = parser.parse_args().host
    figures: dict[str, Any]
    if host:
        figures = dict(unchanged(host, repeats=1))
    else:
        with tempfile.TemporaryDirectory(prefix="wanmetal-bench-") as state:
            os.environ["WANMETAL_LAB_DIR"] = state  # an empty package cache
            figures = measure()
    reports = Path("reports")
    reports.mkdir(exist_ok=True)
    (reports / "bench-deploy.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
