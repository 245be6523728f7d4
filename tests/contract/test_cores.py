"""The plan of a deploy with everything switched on, made by each ansible-core that is promised."""

from __future__ import annotations

import json
import os
import re
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests import cores
from ansible_collections.wanmetal.comfyui.tests.unit.gpu_hosts import HOSTS, make, python_of

COMPILERS = {"cu128": "the compiler of CUDA 12.8", "cu130": "the compiler of CUDA 13.0"}
SHOWN = {"gpu": "NVIDIA GeForce RTX 4090", "cpu": "no NVIDIA GPU"}


def host(folder: Path, accelerator: str, version: str) -> dict[str, Any]:
    """This machine, as if it were a host with a GPU, or with none."""
    root = make(folder / "root", HOSTS["one" if accelerator == "gpu" else "no gpu"])
    python = str(python_of(folder, root))
    return {"wanmetal_accelerator": accelerator, "wanmetal_lane": version, "ansible_python_interpreter": python}


@pytest.mark.parametrize("core", cores.PROMISED)
def test_a_deploy_is_planned(core: str, tmp_path: Path) -> None:
    programs = cores.need(core)
    pairs = [*product(SHOWN, COMPILERS)] if core == cores.PINNED else [*zip(SHOWN, COMPILERS, strict=True)]
    kinds = {f"{accelerator}-{version}": (accelerator, version) for accelerator, version in pairs}
    hosts = {name: host(tmp_path / name, *kind) for name, kind in kinds.items()}
    settings = {
        **cores.EVERYTHING,
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_remote_tmp": str(tmp_path / "remote"),
        "preflight_allow_untested_os": True,
        # What this machine has of them is no matter.
        "preflight_skip": ["arch", "disk", "memory", "os", "ports", "sources", "systemd", "time"],
    }
    (tmp_path / "hosts.json").write_text(json.dumps({"gpu_hosts": {"hosts": hosts, "vars": settings}}))
    environment = {
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_CONFIG": str(cores.ROOT / "ansible.cfg"),
        "ANSIBLE_DEPRECATION_WARNINGS": "true",
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(
        [programs / "ansible-playbook", "playbooks/preflight.yml", "-i", tmp_path / "hosts.json"],
        cwd=cores.ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "DEPRECATION" not in said
    plans = re.findall(r"^ok: \[(\S+)\] => (\{\n    \"msg\": \"host .*\n\})", said, re.MULTILINE)
    assert {name for name, _ in plans} == kinds.keys(), said
    for name, plan in plans:
        accelerator, version = kinds[name]
        lines = " ".join(json.loads(plan)["msg"].split())  # however wide the screen is
        assert SHOWN[accelerator] in lines
        assert ("faster attention" in lines) == (accelerator == "gpu")
        for words in (COMPILERS[version], "comfyui-api.service", "jupyterlab.service", "comfyui-handler.service"):
            assert words in lines
        assert "prometheus-node-exporter" in lines
        assert ("datacenter-gpu-manager-exporter" in lines) == (accelerator == "gpu")
        others = {*COMPILERS.values()} - {COMPILERS[version]}
        assert not [words for words in others if words in lines]
