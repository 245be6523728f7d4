"""Give a lab host what the shipped workflows need to render: tiny models under the catalogue's names, and a loader."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import PREVIEWS
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows

from tests.e2e import frontend
from tests.worker import PROJECT, STATE, Worker

DATA = "/var/lib/wanmetal"


def browse(worker: Worker, address: str, names: Sequence[str], seconds: float = 900) -> dict[str, Any]:
    """Open workflows in Chromium, by a script of the tests' pack; return what the browser makes of them."""
    web = {f"web/{name}.json": json.dumps(workflows.load(name)).encode() for name in names}
    web["web/list.json"] = json.dumps({"names": list(names), "pictures": []}).encode()
    send(worker, f"/srv/wanmetal/hosts/{worker.name}/current/ComfyUI/custom_nodes/wanmetal_tests", web)
    kept = f"{address}/userdata/wanmetal-export.json"
    with frontend.opened(address):
        deadline = time.monotonic() + seconds
        while (answer := requests.get(kept, timeout=10)).status_code != 200:
            assert time.monotonic() < deadline, "the browser has exported nothing"
            time.sleep(1)
        return dict(answer.json())


def assert_same(name: str, found: Mapping[str, Any]) -> None:
    """The browser shows a workflow without a fault, and makes the same of it for the API as is shipped."""
    assert not found["red"], name
    assert not found["errors"], name
    for node in found["api"].values():
        node["inputs"] = {key: value for key, value in node["inputs"].items() if key not in PREVIEWS}
    assert found["api"] == workflows.load_api(name), name


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


def equip(worker: Worker, names: Sequence[str]) -> None:
    """Give a worker tiny models for some workflows, and what these open."""
    worker.playbook("tests/lab/models.yml", "-e", json.dumps({"lab_workflows": list(names)}))
    send(worker, DATA, folder_files(PROJECT / "files/workflows/input"))


def forward(worker: Worker) -> contextlib.AbstractContextManager[str]:
    """A tunnel to ComfyUI on a worker."""
    return tunnel(f"ssh -F {STATE / 'ssh_config'} -N -L 8188:127.0.0.1:8188 {worker.name}")


@contextlib.contextmanager
def tunnel(command: str) -> Iterator[str]:
    """The address that a tunnel command opens, while it is open; its port is exchanged for one that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command, exchanged = re.subn(r"-L \d+:", f"-L {port}:", command)
    assert exchanged == 1, command
    process = subprocess.Popen(shlex.split(command), stdin=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{port}/", timeout=60)
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
