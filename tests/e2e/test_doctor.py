"""The doctor on a host that really has the illnesses which a folder of a test's own cannot have."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker import Worker

worker = Worker("doctor1")
ROOT = "/srv/wanmetal/hosts/doctor1"
TOKEN = "hf_" + "aB3" * 11
ILL = f"""
set -eu
useradd --system --no-create-home wanmetal
mkdir -p {ROOT}/releases/r1 /var/lib/wanmetal /etc/wanmetal /var/cache/wanmetal
echo '{{"id": "r1", "lane": "cu128"}}' > {ROOT}/releases/r1/release.json
echo '{{"release": "r0"}}' > {ROOT}/verified.json
ln -s releases/r1 {ROOT}/current
mount -t tmpfs -o size=20M tmpfs /var/lib/wanmetal
mkdir -p /var/lib/wanmetal/models/vae /var/lib/wanmetal/output
echo '<html>not found</html>' > /var/lib/wanmetal/models/vae/cut.safetensors
ln -s /etc/shadow /var/lib/wanmetal/models/vae/link.safetensors
echo 'MY_PASSWORD=plain-horse' > /etc/wanmetal/comfyui.env
cd /etc/systemd/system
printf '[Service]\\nExecStart=/bin/sh -c "echo torch.OutOfMemoryError: CUDA out of memory; \\
  echo HF_TOKEN={TOKEN}, plain-horse; exit 1"\\n' > comfyui.service
printf '[Service]\\nMemoryMax=20M\\nMemorySwapMax=0\\nExecStart=/usr/bin/python3 -c "x = bytearray(10**9)"\\n' \\
  > comfyui-api.service
printf '[Service]\\nExecStart=/usr/bin/python3 -m http.server 8888 --bind 0.0.0.0\\n' > jupyterlab.service
printf '[Service]\\nExecStart=/usr/bin/python3 -m http.server 8188 --bind 127.0.0.1\\n' > other.service
printf '[Service]\\nUser=wanmetal\\nExecStart=/bin/bash -c "exec -a /opt/xmrig sleep 3600"\\n' > update.service
systemctl daemon-reload
systemctl start other jupyterlab update
systemctl start comfyui comfyui-api || true
sleep 3
"""
FOUND = {
    "a miner runs": "update.service",
    "a service that others can reach": "jupyterlab.service listens on 0.0.0.0:8888",
    "ports": "port 8188 is held by python3",
    "memory of the system has run out": "found comfyui-api.service",
    "memory of the GPU has run out": "CUDA out of memory",
    "models do not outlive a restart": "/var/lib/wanmetal is on tmpfs",
    "a model that is damaged": "models/vae/cut.safetensors: it is a page: a login, a captive portal or an error",
    "folders that ComfyUI cannot write to": "/var/lib/wanmetal/output",
    "another release runs than the one that was verified": "release r1 is current, and r0 was verified",
    "disk": "MB free on /var/lib/wanmetal",
    "services that do not run": "comfyui.service is failed",
    "another job is running": "another job is running",
}


@pytest.fixture(scope="module", autouse=True)
def lab() -> Iterator[None]:
    worker.remove()
    worker.up()
    yield
    worker.remove()


@pytest.mark.slow
def test_a_host_with_many_illnesses(tmp_path: Path) -> None:
    worker.ssh(f"sudo bash << 'END'\n{ILL}\nEND")
    folders = "/etc/wanmetal /etc/systemd /srv/wanmetal /var/lib/wanmetal /var/cache/wanmetal"
    state = f"sudo find {folders} -printf '%p %T@ %s %m %u\\n'"
    before = worker.ssh(state)
    log = tmp_path / "deploy.log"
    log.write_text("fatal: [doctor1]: FAILED! => \n    msg: another job is running\n")
    output = ("-e", f"verify_output_dir={tmp_path}")
    said = worker.playbook("playbooks/doctor.yml", *output)
    assert worker.ssh(state) == before
    for name, shown in FOUND.items():
        part = said.split(f". {name}\n")[1].split("\n\n")[0]
        assert shown in " ".join(part.split()), name
    with tarfile.open(tmp_path / "support-doctor1.tar.gz") as bundle:
        opened = {entry.name.partition("/")[2]: bundle.extractfile(entry) for entry in bundle.getmembers()}
        texts = {name: stream.read().decode() for name, stream in opened.items() if stream}
    assert "HF_TOKEN=<redacted>, <redacted>" in texts["journal.txt"]
    assert "cut.safetensors" in texts["models.txt"]
    assert "link.safetensors" not in texts["models.txt"]
    assert not [name for name, text in texts.items() if TOKEN in text or "plain-horse" in text]
