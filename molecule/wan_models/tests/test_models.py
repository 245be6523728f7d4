"""The files on each host, where they came from, and that nothing is left of the sharing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
SIZES = {entry["name"]: entry["size"] for entry in json.loads((SCENARIO / "files.json").read_text())["files"]}
KNOWN = {
    entry["name"]: entry["sha256"]
    for entry in yaml.safe_load((SCENARIO / "locks/models.yml").read_text())["files"].values()
}
MODELS = "/var/lib/wanmetal/models"
FILES = {
    "big.safetensors": "diffusion_models",
    "vae.safetensors": "vae",
    "unknown.safetensors": "loras",
    "style.safetensors": "loras",
}


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_verified(host: Any, name: str) -> None:
    path = f"{MODELS}/{FILES[name]}/{name}"
    file = host.file(path)
    assert (file.user, file.group, file.mode, file.size) == ("wanmetal-models", "wanmetal", 0o644, SIZES[name])
    assert KNOWN.get(name) in {None, file.sha256sum}
    record = json.loads(host.file("/var/lib/wanmetal/models-state/verified.json").content_string)["files"]
    assert record[path]["sha256"] == file.sha256sum
    assert record[path]["by"] == ("host" if name == "unknown.safetensors" else "catalogue")


def test_nothing_else_is_left(host: Any) -> None:
    found = host.check_output(f"find {MODELS} -type f").split("\n")
    rejected = f"{MODELS}/vae/vae.safetensors.rejected"
    assert sorted(path for path in found if path != rejected) == sorted(
        f"{MODELS}/{folder}/{name}" for name, folder in FILES.items()
    )
    assert host.run("pgrep --exact aria2c").rc == 1


def test_the_service_s_user_may_read_them_and_write_none(host: Any) -> None:
    path = f"{MODELS}/vae/vae.safetensors"
    assert host.run(f"runuser --user wanmetal -- head --bytes=1 {path}").rc == 0
    assert host.run(f"runuser --user wanmetal -- touch {path}").rc != 0


def test_nothing_serves_any_longer(host: Any) -> None:
    assert not host.socket("tcp://0.0.0.0:8290").is_listening
    assert "8290" not in host.check_output("ss --listening --tcp --numeric")
    assert host.check_output("systemctl show --property=LoadState --value wanmetal-models-share") == "not-found"
    nginx = host.service("nginx")
    assert not nginx.is_running
    assert not nginx.is_enabled


def test_the_services_were_taken_away(host: Any) -> None:
    assert host.run("ls /etc/systemd/system/wanmetal-models*").rc != 0
    assert host.run("ls /srv/wanmetal/hosts/*/bin/wanmetal-models").rc != 0
