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
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.worker import PROJECT, STATE, Worker

DATA = "/var/lib/wanmetal"


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


def equip(worker: Worker, names: Sequence[str], settings: str = "{}") -> None:
    """Give a worker tiny models for some workflows, and what these open. The settings are those of its deploy."""
    worker.playbook("tests/lab/models.yml", "-e", settings, "-e", json.dumps({"lab_workflows": list(names)}))
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
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
