"""Builds a Python wheel with a compiler, in a transient systemd unit that outlives the one who asked for it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import opened_regular, read_regular

_ALIVE = {"active", "activating", "deactivating"}
RUNNING, BUILT, FAILED = "running", "built", "failed"

PROGRAM = r"""
import os, shutil, subprocess, sys, sysconfig
from pathlib import Path

source, work = Path(sys.argv[1]), Path(sys.argv[2])
shutil.rmtree(work / "tree", ignore_errors=True)
shutil.copytree(source, work / "tree", symlinks=True)
(work / "part").mkdir(exist_ok=True)
environment = os.environ
environment.setdefault("HOME", str(work))
environment["TMPDIR"] = str(work)

# CUDA's libraries that came with torch bring their headers along, so the toolkit need not have them.
headers = [str(folder) for folder in Path(sysconfig.get_path("purelib")).glob("nvidia/*/include")]
environment["CPATH"] = os.pathsep.join(filter(None, [environment.get("CPATH"), *headers]))

# A stand-in for the driver's library, to link with where there is no driver. The real one has its name, and is loaded.
stubs = work / "stubs"
stubs.mkdir(exist_ok=True)
link = ["gcc", "-shared", "-o", str(stubs / "libcuda.so"), "-Wl,-soname,libcuda.so.1", "-x", "c", os.devnull]
subprocess.run(link, check=True)
toolkit = Path(environment.get("CUDA_HOME", os.devnull))
libraries = [str(folder) for folder in (toolkit / "lib64/stubs", toolkit / "lib/stubs") if folder.is_dir()]
libraries += [str(folder) for folder in (toolkit / "lib64", toolkit / "lib") if folder.is_dir()]
environment["LIBRARY_PATH"] = os.pathsep.join(filter(None, [environment.get("LIBRARY_PATH"), *libraries, str(stubs)]))
environment["LDFLAGS"] = " ".join(filter(None, ["-Wl,--no-as-needed", environment.get("LDFLAGS")]))

os.chdir(work / "tree")
sys.argv = ["setup.py"]
from setuptools import build_meta

print("built", build_meta.build_wheel(str(work / "part")), flush=True)
(work / "part").rename(work / "dist")  # one that was cut off has no dist
"""
"""What runs in the unit: ``python -c PROGRAM SOURCE WORK``."""

MEMORY_PER_THREAD_MB = 4096
"""What a thread of nvcc takes of memory, at its worst, for these kernels."""
KEPT_FREE = 0.2
"""Part of the memory that a build leaves to others."""
MOST_EXTENSIONS = 4
"""SageAttention has so many extensions; more at once have nothing to do."""

_TELLING = re.compile(r"\berror\b|\bfatal\b|Killed|No space left|RuntimeError|Cannot find|not found", re.IGNORECASE)
_HARMLESS = re.compile(r"warning|-Werror|error_|_error\b", re.IGNORECASE)
_RESULTS = {
    "oom-kill": "it took more memory than memory_max allows, and was ended",
    "timeout": "it took longer than timeout, and was ended",
    "signal": "it was ended by a signal",
}


def build_limits(cores: int, memory_mb: int, architectures: int) -> dict[str, str]:
    """The environment that keeps a build within the cores and the memory of its host.

    nvcc compiles for each architecture in a thread of its own, up to ``--threads``; MAX_JOBS of them run for each of
    EXT_PARALLEL extensions.
    """
    by_memory = int(memory_mb * (1 - KEPT_FREE)) // MEMORY_PER_THREAD_MB
    threads = max(1, min(cores, by_memory))
    per_job = max(1, min(threads, architectures))
    jobs = max(1, threads // per_job)
    extensions = min(MOST_EXTENSIONS, 2 if jobs >= 4 else 1)
    return {
        "EXT_PARALLEL": str(extensions),
        "MAX_JOBS": str(jobs // extensions),
        # The last one on nvcc's command line counts, and the package asks for eight.
        "NVCC_APPEND_FLAGS": f"--threads={per_job}",
    }


def memory_mb(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that a build may take without anything else having to give way."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


def telling_line(log: str) -> str:
    """The line of a log that says most about a failure."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    found = [line for line in lines if _TELLING.search(line) and not _HARMLESS.search(line)]
    return (found[0] if found else lines[-1] if lines else "it wrote nothing")[:300]


def why_failed(result: str, log: str) -> str:
    """A failed unit in words, from systemd's name for it and the log."""
    return _RESULTS.get(result) or telling_line(log)


def objects(work: Path) -> tuple[int, int]:
    """How many objects are compiled, of how many that are known of. ninja's files name them."""
    wanted = set()
    for file in work.glob("tree/build/**/build.ninja"):
        with contextlib.suppress(OSError):  # the build's user may have put anything there
            text = read_regular(file).decode(errors="replace")
            wanted |= {file.parent / found for found in re.findall(r"^build (\S+\.o): ", text, re.MULTILINE)}
    return sum(1 for path in wanted if path.exists()), len(wanted)


@dataclass(frozen=True)
class Build:
    """What is to be built, and within what limits."""

    name: str
    source: Path
    python: Path
    tools: tuple[Path, ...]
    dest: Path
    log: Path
    environment: Mapping[str, str]
    memory_max: str
    timeout_s: int

    @property
    def unit(self) -> str:
        """Name of the unit that builds it."""
        return f"wanmetal-build-{self.name}.service"

    @property
    def cache(self) -> str:
        """Folder of the build, below ``/var/cache``."""
        return f"wanmetal-build/{self.name}"


def unit_command(build: Build, cache: Path = Path("/var/cache")) -> list[str]:
    """How the unit is started. It gets a user of its own, no network, and can write nowhere but into its folder."""
    work = cache / build.cache
    environment = {
        **build.environment,
        "PYTHONPATH": ":".join(map(str, build.tools)),
        "HOME": str(work),
        "PYTHONUNBUFFERED": "1",
    }
    properties = [
        "DynamicUser=yes",
        f"CacheDirectory={build.cache}",
        "CacheDirectoryMode=0700",
        f"WorkingDirectory={work}",
        "PrivateTmp=yes",
        "PrivateNetwork=yes",
        "PrivateDevices=yes",
        "ProtectHome=read-only",
        "NoNewPrivileges=yes",
        f"MemoryMax={build.memory_max}",
        "MemorySwapMax=0",
        "OOMPolicy=kill",
        "CPUWeight=20",
        "IOWeight=20",
        f"RuntimeMaxSec={build.timeout_s}",
        f"StandardOutput=append:{build.log}",
        f"StandardError=append:{build.log}",
    ]
    return [
        *("systemd-run", "--quiet", f"--unit={build.unit}", f"--description=Build of {build.name}"),
        *(f"--property={entry}" for entry in properties),
        *(f"--setenv={name}={value}" for name, value in environment.items()),
        *(str(build.python), "-c", PROGRAM, str(build.source), str(work)),
    ]


Run = Callable[[Sequence[str]], "tuple[int, str]"]


def run_program(command: Sequence[str]) -> tuple[int, str]:
    """Run a program; its exit status and its output."""
    # pylint: disable-next=ansible-bad-function
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    return done.returncode, (done.stdout + done.stderr).strip()


class Builder:
    """Starts a build or joins one that is under way, and says how far it is."""

    def __init__(self, build: Build, run: Run = run_program, cache: Path = Path("/var/cache")) -> None:
        self.build = build
        self._run = run
        self._cache = cache
        # systemd keeps the folders of users that come and go below a private one.
        self._work = cache / "private" / build.cache

    def wheel(self) -> Path | None:
        """The finished wheel, or None."""
        return next(iter(sorted(self.build.dest.glob("*.whl"))), None)

    def unit(self) -> dict[str, str]:
        """State of the build's unit, as systemd gives it."""
        names = "LoadState,ActiveState,Result,ExecMainStartTimestampMonotonic"
        _unused, text = self._run(["systemctl", "show", self.build.unit, f"--property={names}"])
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def _made(self) -> Path | None:
        """The wheel that the unit has left."""
        return next(iter(sorted(self._work.glob("dist/*.whl"))), None)

    def begin(self) -> bool:
        """Start the build, unless its wheel is there or its unit runs. Says whether it did."""
        if self.wheel():
            return False
        state = self.unit().get("ActiveState")
        if state in _ALIVE or (state != "failed" and self._made()):
            return False
        self._clean()
        self.build.log.unlink(missing_ok=True)
        code, text = self._run(unit_command(self.build, self._cache))
        if code:
            raise OSError(f"systemd does not start {self.build.unit}: {text}")
        return True

    def look(self) -> dict[str, Any]:
        """How far it is; the wheel is put into its place when it is ready."""
        if wheel := self.wheel():
            return _built(wheel)
        unit = self.unit()
        if unit.get("ActiveState") in _ALIVE:
            began = int(unit.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
            done, total = objects(self._work)
            elapsed = round(time.monotonic() - began, 1) if began else 0.0
            return {"state": RUNNING, "done": done, "total": total, "elapsed_s": elapsed}
        made = self._made()
        failed = unit.get("ActiveState") == "failed"
        if made is None or failed:
            log = self.build.log.read_text(errors="replace") if self.build.log.exists() else ""
            reason = why_failed(unit.get("Result", "") if failed else "", log)
        else:
            reason = ""
            made = self._keep(made)
        self._clean()
        if reason or made is None:
            return {"state": FAILED, "wheel": "", "sha256": "", "reason": reason}
        return _built(made)

    def _clean(self) -> None:
        self._run(["systemctl", "reset-failed", self.build.unit])
        shutil.rmtree(self._work, ignore_errors=True)
        (self._cache / self.build.cache).unlink(missing_ok=True)  # systemd's link to it

    def _keep(self, made: Path) -> Path:
        part = self.build.dest / f".{made.name}.part"
        with opened_regular(made) as wheel, os.fdopen(wheel, "rb", closefd=False) as source, part.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        return part.replace(self.build.dest / made.name)

    def wait(self, seconds: float) -> dict[str, Any]:
        """Look until it has ended, or the time is over."""
        deadline = time.monotonic() + seconds
        while True:
            told = self.look()
            if told["state"] != RUNNING or time.monotonic() > deadline:
                return told
            time.sleep(min(1.0, seconds))


def _built(wheel: Path) -> dict[str, Any]:
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {"state": BUILT, "wheel": str(wheel), "sha256": sha256, "reason": ""}


def line(name: str, told: Mapping[str, Any]) -> str:
    """Progress in a line."""
    minutes, seconds = divmod(int(told.get("elapsed_s") or 0), 60)
    total = int(told.get("total") or 0)
    count = f", {told['done']} of {total} objects compiled" if total else ""
    return f"building {name}{count}, since {minutes} min {seconds:02d} s"


def environment(given: Mapping[str, object], architectures: Sequence[str], most_threads: int) -> dict[str, str]:
    """The environment of a build on this host. What is given goes first; no number of threads means all cores."""
    cores = len(os.sched_getaffinity(0))
    limits = build_limits(min(cores, most_threads or cores), memory_mb(), len(architectures))
    told = {name: str(value) for name, value in given.items()}
    return {**limits, "TORCH_CUDA_ARCH_LIST": ";".join(architectures), **told}
