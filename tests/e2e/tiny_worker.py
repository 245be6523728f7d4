"""Give a lab host what the shipped workflows need to render: tiny models under the catalogue's names, and a loader."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows

from tests.tiny import rendering
from tests.worker import PROJECT, STATE, Worker

DATA = "/var/lib/wanmetal"
WORK = "/tmp/tiny"  # noqa: S108 (of a throw-away host)


def browse(address: str, seconds: float = 180) -> dict[str, Any]:
    """Open the page in Chromium, whose script of the tests' pack exports each workflow; return what it has kept."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium is at hand: what the browser makes of the workflows is NOT tested")
    kept = f"{address}/userdata/wanmetal-export.json"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={profile}", f"{address}/?wanmetal-export"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + seconds
            while (answer := requests.get(kept, timeout=10)).status_code != 200:
                assert time.monotonic() < deadline, "the browser has exported nothing"
                time.sleep(1)
            return dict(answer.json())
        finally:
            process.terminate()
            process.wait(20)


def send(worker: Worker, folder: str, files: dict[str, bytes]) -> None:
    """Unpack files into a folder, as root, readable for all."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    command = f"sudo mkdir -p {folder} && sudo tar --extract --no-same-owner --directory {folder}"
    ssh = ["ssh", "-F", str(STATE / "ssh_config"), worker.name, command]
    subprocess.run(ssh, input=packed.getvalue(), check=True)


def folder_files(folder: Path) -> dict[str, bytes]:
    """Files of a folder, with its own name before theirs."""
    found = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {str(file.relative_to(folder.parent)): file.read_bytes() for file in found}


def plain_names() -> list[str]:
    """Workflows of ComfyUI's own nodes."""
    return [name for name, entry in workflows.index().items() if not entry["packs"]]


def equip(worker: Worker, root: str) -> None:
    """Make the models on the host, place the tests' node pack, and start ComfyUI anew."""
    tasks = rendering.tasks(f"{DATA}/models", rendering.names())
    files = {"tasks.json": json.dumps(tasks).encode(), "models.py": (PROJECT / "tests/tiny/models.py").read_bytes()}
    send(worker, WORK, files)
    pack = folder_files(PROJECT / "tests/pack/wanmetal_tests")
    browsed = {"names": plain_names(), "pictures": []}
    pack["wanmetal_tests/web/list.json"] = json.dumps(browsed).encode()
    for name in plain_names():
        pack[f"wanmetal_tests/web/{name}.json"] = json.dumps(workflows.load(name, "ui")).encode()
    send(worker, f"{root}/current/ComfyUI/custom_nodes", pack)
    inputs = folder_files(PROJECT / "files/workflows/input")
    send(worker, DATA, inputs)
    current = f"{root}/current"
    worker.ssh(f"sudo {current}/venv/bin/python {WORK}/models.py {WORK}/tasks.json $(readlink -f {current})/ComfyUI")
    worker.ssh("sudo systemctl restart comfyui")
    worker.ssh("timeout 120 sh -c 'until curl --silent --fail http://127.0.0.1:8188/queue; do sleep 0.5; done'")
