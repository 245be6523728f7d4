"""Environments with each ansible-core that is promised."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
CACHE = ROOT / ".cache"

# By release, the version that is run, and the Pythons 3.x that it runs on. The first one is the pinned one.
PROMISED = {
    "2.19": ("2.19.14", range(11, 14)),
    "2.20": ("2.20.10", range(12, 15)),
    "2.21": ("2.21.5", range(12, 15)),
}
PINNED = next(iter(PROMISED))
WITHOUT = "WANMETAL_TEST_WITHOUT_CORES"


def need(core: str, *, all_of_them: bool = False) -> Path:
    """Folder of the programs of an ansible-core. Skips where no Python runs it, and fails if all are asked for."""
    if core == PINNED:
        return BIN
    version, pythons = PROMISED[core]
    python = _python(pythons)
    if not python:
        lacking = f"Python 3.{pythons[0]} to 3.{pythons[-1]}"
        said = f"ansible-core {core} was NOT run: this machine lacks {lacking}. Install one"
        if all_of_them and core not in os.environ.get(WITHOUT, "").split():
            pytest.fail(f"{said}, or go without it: {WITHOUT}='{core}'", pytrace=False)
        pytest.skip(said)
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "core.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = CACHE / f"core-{version}"
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _uv("venv", "--no-config", "--python", python, folder)
            _uv("pip", "install", "--no-config", "--python", folder / "bin/python", f"ansible-core=={version}")
            (folder / "complete").touch()
    return folder / "bin"


def _python(minors: range) -> str:
    """A Python that works: this one, one of the system's, or one of pyenv's."""
    if sys.version_info[1] in minors:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    for minor in minors:
        for python in (f"python3.{minor}", *map(str, sorted(pyenv.glob(f"versions/*/bin/python3.{minor}")))):
            with contextlib.suppress(OSError):
                if subprocess.run([python, "-c", "import ssl"], capture_output=True, check=False).returncode == 0:
                    return python
    return ""


def _uv(*words: str | Path) -> None:
    environment = {**os.environ, "UV_SYSTEM_CERTS": "true", **index()}
    done = subprocess.run([BIN / "uv", "--quiet", *words], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"uv {words[0]} failed\n{done.stdout}\n{done.stderr}"


def index() -> dict[str, str]:
    """Where uv finds packages: it does not read pip's settings."""
    if {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & os.environ.keys():
        return {}
    pip = ROOT / ".venv/uv/bin/pip"
    found = subprocess.run([pip, "config", "get", "global.index-url"], capture_output=True, text=True, check=False)
    return {"UV_DEFAULT_INDEX": found.stdout.strip()} if found.stdout.strip() else {}


# Every role at work.
EVERYTHING = {
    "wanmetal_variant": "wan",
    "comfyui_api_enabled": True,
    "cuda_toolkit_enabled": True,
    "handler_enabled": True,
    "jupyterlab_enabled": True,
    "monitoring_enabled": True,
    "nvidia_driver_enabled": True,
    "sageattention_enabled": True,
    "wan_models_sets": ["optimisation-loras"],
}
