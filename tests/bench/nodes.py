#!/usr/bin/env python3
"""How long the environment of variant wan takes, beside pip, and what a release costs that changes one node pack.

Parts, all of them where none is named:
  environment  uv, as a release builds it, and pip, each with nothing there and with all packages on this machine
  sizes        what files/locks/upstream.yml says of environments, all or those that are named: bytes to fetch, bytes
               and files on disk
  release      a first release, one that changes a pack, and an unchanged deploy, with small packs of the tests' own

Environments are built on this machine, with caches of their own. Prints a table and writes reports/bench-nodes.json.
Run it as: .venv/test/bin/python -m tests.bench.nodes [PART...] [ENVIRONMENT...]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.bench.deploy import median_of

PROJECT = Path(__file__).resolve().parents[2]
LOCKS = PROJECT / "files/locks"
UV = shutil.which("uv") or PROJECT / ".venv/uv/bin/uv"


def timed(command: list[str | Path], **environment: str) -> float:
    """Seconds of a command."""
    begin = time.monotonic()
    words = [str(word) for word in command]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    return time.monotonic() - begin


def with_uv(venv: Path, cache: Path, lock: Path, *more: str) -> float:
    """Seconds of an environment, made as the role comfyui makes it."""
    environment = {"UV_CACHE_DIR": str(cache), "UV_NO_PROGRESS": "1"}
    seconds = timed([UV, "venv", "--quiet", f"--python={sys.executable}", venv], **environment)
    options = ["--quiet", "--require-hashes", "--no-build", f"--python={venv}/bin/python", *more]
    return seconds + timed([UV, "pip", "sync", *options, lock], **environment)


def with_pip(venv: Path, lock: Path, *more: str) -> float:
    """Seconds of the same environment with pip. It would compile the bytecode, too, which here neither does."""
    seconds = timed([sys.executable, "-m", "venv", venv])
    options = ["--quiet", "--require-hashes", "--no-compile", "--no-cache-dir", *more, f"--requirement={lock}"]
    return seconds + timed([venv / "bin/pip", "install", *options])


def download(wheels: Path, lock: Path) -> None:
    """Fetch the wheels of a lock. As pip's own cache they would depend on what the index says of caching."""
    pip = wheels.with_name("pip")
    timed([sys.executable, "-m", "venv", pip])
    options = ["--quiet", "--no-deps", "--require-hashes", "--no-cache-dir", "--only-binary=:all:", f"--dest={wheels}"]
    timed([pip / "bin/pip", "download", *options, f"--requirement={lock}"])


def environments() -> dict[str, float]:
    """Seconds of the environment of variant wan, with nothing there and with all packages there."""
    found: dict[str, float] = {}
    wan = lock("wan-cu128")
    with tempfile.TemporaryDirectory(prefix="wanmetal-bench-") as name:
        venv, cache, wheels = Path(name, "venv"), Path(name, "cache"), Path(name, "wheels")
        for state in ("cold", "warm"):
            found[f"uv_{state}_s"] = round(with_uv(venv, cache, wan), 1)
            shutil.rmtree(venv)
        shutil.rmtree(cache)
        found["pip_cold_s"] = round(with_pip(venv, wan), 1)
        shutil.rmtree(venv)
        download(wheels, wan)
        found["pip_warm_s"] = round(with_pip(venv, wan, "--no-index", f"--find-links={wheels}"), 1)
    found["times_faster_warm"] = round(found["pip_warm_s"] / found["uv_warm_s"], 1)
    return found


def lock(environment: str) -> Path:
    """The lock of an environment."""
    return LOCKS / f"python/{environment}.txt"


def sizes(names: Sequence[str]) -> dict[str, float]:
    """Bytes to fetch, bytes and files on disk of environments, compiled as the role comfyui compiles them."""
    found: dict[str, float] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="wanmetal-bench-") as folder:
            wheels, venv = Path(folder, "wheels"), Path(folder, "venv")
            download(wheels, lock(name))
            found[f"{name} download_bytes"] = sum(wheel.stat().st_size for wheel in wheels.iterdir())
            with_uv(venv, Path(folder, "cache"), lock(name), "--no-index", f"--find-links={wheels}")
            options = ["-qq", "-j0", "-x", "/tests?/|/transformers/models/"]
            # some packages carry templates that are no Python
            subprocess.run([venv / "bin/python", "-m", "compileall", *options, venv / "lib"], check=False)
            used = subprocess.check_output(["du", "-s", "--block-size=1", venv], text=True)
            found[f"{name} disk_bytes"] = int(used.split()[0])
            found[f"{name} files"] = sum(1 for _ in venv.rglob("*"))
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
            # The packs and their locks are made on this machine, which is not what is measured.
            made = {"nodes_locked": ["first", "second"]}
            run("ansible-playbook", PROJECT / "molecule/nodes/prepare.yml", "--extra-vars", json.dumps(made))
            play = ["ansible-playbook", str(PROJECT / "molecule/nodes/converge.yml"), *worker.inventory]
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


PARTS = ["environment", "sizes", "release"]


def main() -> None:
    """Measure, and show the figures."""
    known = list(yaml.safe_load((LOCKS / "upstream.yml").read_text())["environments"])
    if strange := [name for name in sys.argv[1:] if name not in {*PARTS, *known}]:
        sys.exit(f"found {strange[0]}, which is neither a part ({', '.join(PARTS)}) nor an environment")
    parts = [name for name in PARTS if name in sys.argv] or PARTS
    figures: dict[str, float] = {}
    if "environment" in parts:
        figures |= environments()
    if "sizes" in parts:
        figures |= sizes([name for name in known if name in sys.argv] or known)
    if "release" in parts:
        figures |= releases()
    reports = Path("reports")
    reports.mkdir(exist_ok=True)
    (reports / "bench-nodes.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
