#!/usr/bin/env python3
"""How long the environment of variant wan takes, beside pip, and what a release costs that changes one node pack.

The environments are built on this machine, with caches of their own that are empty at first. The releases are made on a
lab host, with small packs of the tests' own. Prints a table and writes reports/bench-nodes.json. Run it as:
.venv/test/bin/python -m tests.bench.nodes [environment] [release]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.deploy import median_of

PROJECT = Path(__file__).resolve().parents[2]
LOCK = PROJECT / f"files/locks/python/wan-cu128-py3{sys.version_info.minor}.txt"


def timed(command: list[str | Path], **environment: str) -> float:
    """Seconds of a command."""
    begin = time.monotonic()
    words = [str(word) for word in command]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    return time.monotonic() - begin


def environments() -> dict[str, float]:
    """Seconds of an environment of variant wan, with uv as a release builds it and with pip, cold and warm."""
    found = {}
    uv = shutil.which("uv") or PROJECT / ".venv/uv/bin/uv"
    for way in ("uv", "pip"):
        with tempfile.TemporaryDirectory(prefix="wanmetal-bench-") as name:
            folder, venv = Path(name), Path(name) / "venv"
            for state in ("cold", "warm"):
                if way == "uv":
                    cache = {"UV_CACHE_DIR": str(folder / "cache"), "UV_NO_PROGRESS": "1"}
                    seconds = timed([uv, "venv", "--quiet", f"--python={sys.executable}", venv], **cache)
                    options = ["--quiet", "--require-hashes", "--no-build", f"--python={venv}/bin/python"]
                    seconds += timed([uv, "pip", "sync", *options, LOCK], **cache)
                else:
                    seconds = timed([sys.executable, "-m", "venv", venv])
                    options = ["--quiet", "--require-hashes", "--no-compile", f"--requirement={LOCK}"]
                    pip_cache = str(folder / "cache")
                    seconds += timed([venv / "bin/pip", "install", *options], PIP_CACHE_DIR=pip_cache)
                found[f"{way}_{state}_s"] = round(seconds, 1)
                shutil.rmtree(venv)
    found["times_faster_warm"] = round(found["pip_warm_s"] / found["uv_warm_s"], 1)
    return found


def releases() -> dict[str, float]:
    """Seconds and megabytes of a first release, of one that changes one pack, and seconds of an unchanged deploy."""
    from tests.worker import LAB, STATE, Worker, run  # not before: it reads WANMETAL_LAB_DIR

    worker = Worker("benchnodes")
    worker.up()
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ.update(
                MOLECULE_SCENARIO_DIRECTORY=str(PROJECT / "molecule/nodes"),
                MOLECULE_EPHEMERAL_DIRECTORY=folder,
                MOLECULE_PROJECT_DIRECTORY=str(PROJECT),
                WANMETAL_LAB_DIR=str(STATE),
            )
            play = ["ansible-playbook", str(PROJECT / "molecule/nodes/converge.yml"), *worker.inventory]
            # The packs and their locks are made by a play on this machine, which is not what is measured.
            local = [*play[:-2], "--limit=localhost"]
            for state in ("first", "second"):
                run(*local, f"--extra-vars=nodes_state={state}")
            root = f"/srv/wanmetal/hosts/{worker.name}"
            disk = f"sudo du -sc --block-size=1M {root}/releases {root}/environments | tail -1"
            figures: dict[str, float] = {}
            megabytes = 0.0
            for state in ("first", "second"):
                figures[f"{state}_release_s"] = round(timed([*play, f"--extra-vars=nodes_state={state}"]), 1)
                now = float(worker.ssh(disk).split()[0])
                figures[f"{state}_release_mb"] = now - megabytes
                megabytes = now
            figures["unchanged_s"] = round(median_of([*play, "--extra-vars=nodes_state=second"]), 1)
            return figures
    finally:
        run(*LAB, "remove", worker.name)


def main() -> None:
    """Measure, and show the figures."""
    parts = {"environment": environments, "release": releases}
    figures: dict[str, float] = {}
    for name in sys.argv[1:] or parts:
        figures |= parts[name]()
    reports = Path("reports")
    reports.mkdir(exist_ok=True)
    (reports / "bench-nodes.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
