"""Plays over hosts that show a GPU: small trees of files, reached on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.tests.unit.gpu_hosts import HOSTS, make, python_of

ROOT = Path(__file__).resolve().parents[2]


def role(name: str, tasks_from: str = "main") -> dict[str, Any]:
    return {
        "name": f"Role {name}",
        "ansible.builtin.import_role": {"name": f"wanmetal.comfyui.{name}", "tasks_from": tasks_from, "public": True},
    }


def say(text: str) -> dict[str, Any]:
    return {"name": "Say", "ansible.builtin.debug": {"msg": text}}


def play(
    home: Path,
    kinds: Mapping[str, str],
    plays: list[list[dict[str, Any]]],
    status: int = 0,
    own: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    **settings: Any,
) -> str:
    """What a run says, whose hosts are of these kinds; some have settings of their own."""
    hosts: dict[str, dict[str, Any]] = {}
    for name, kind in kinds.items():
        root = make(home / name, HOSTS[kind])
        # Preflight's module looks at the GPUs by itself, and knows no other root.
        hosts[name] = {"__nvidia_driver_root": str(root), "ansible_python_interpreter": str(python_of(root, root))}
        hosts[name] |= own.get(name, {})
    shared = {
        "ansible_connection": "local",
        "wanmetal_root": str(home / "root"),
        "wanmetal_data_dir": str(home / "data"),
        **settings,
    }
    head = {"hosts": "gpu_hosts", "gather_facts": False, "serial": "{{ wanmetal_serial | default('100%') }}"}
    inventory, playbook = home / "hosts.yml", home / "play.yml"
    inventory.write_text(yaml.safe_dump({"gpu_hosts": {"hosts": hosts, "vars": shared}}))
    playbook.write_text(yaml.safe_dump([{**head, "tasks": tasks} for tasks in plays], sort_keys=False))
    environment = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_PRIVATE_ROLE_VARS": "1"}
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", playbook, "-i", inventory],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("serial", "waiting"),
    [
        pytest.param(1, ["gpu1"], id="one after the other"),
        pytest.param(2, ["gpu1", "gpu2"], id="a whole batch"),
    ],
)
def test_a_host_that_waits_for_a_restart_stops_nobody_else(serial: int, waiting: list[str], tmp_path: Path) -> None:
    kinds = {name: "mismatch" if name in waiting else "one" for name in ("gpu1", "gpu2", "gpu3")}
    plays = [
        [role("wanmetal", "facts"), role("nvidia_driver"), say("{{ inventory_hostname }} goes on")],
        [say("{{ inventory_hostname }} is in the next play")],
    ]
    said = play(tmp_path, kinds, plays, wanmetal_serial=serial)
    for name in kinds:
        assert (f"{name} has to be restarted" in said) == (name in waiting)
        assert (f"{name} goes on" in said) == (name not in waiting)
        assert f"{name} is in the next play" in said


def test_models_and_kernels_fit_what_the_gpus_are(tmp_path: Path) -> None:
    kinds = {"whole": "eight", "sliced": "mig", "later": "one, without a driver"}
    told = (
        "{{ inventory_hostname }}: {{ __wan_models_planned.profile }}, "
        "{{ __sageattention_found.architectures | join(' ') }} with {{ cuda_toolkit_home | basename }}"
    )
    tasks = [role("wanmetal", "facts"), role("wan_models", "plan"), role("sageattention", "plan"), say(told)]
    said = play(tmp_path, kinds, [tasks], wan_models_sets=["wan21-t2v"], wanmetal_python="3.11")
    assert said.count(": Read the GPUs and their driver]") == 1
    assert "whole: full, 9.0 with cuda-12.8" in said
    assert "sliced: small, 8.0 with cuda-12.8" in said
    assert "later: fp8,  with cuda-12.8" in said


def test_workflows_bring_their_models(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    loader = {"class_type": "VAELoader", "inputs": {"vae_name": "wan2.2_vae.safetensors"}}
    mine.write_text(json.dumps({"1": loader}))
    told = "{{ __wan_models_planned.sets | map(attribute='set') | join(' ') }}"
    ids = "{{ __wan_models_planned.files | map(attribute='id') | join(' ') }}"
    said = play(
        tmp_path,
        {"gpu1": "one"},
        [[role("wanmetal", "facts"), role("wan_models", "plan"), say(told), say(ids)]],
        wan_models_sets=["previews"],
        wan_models_workflows=["text_to_video_wan", str(mine)],
        wanmetal_python="3.11",
    )
    assert "previews text_to_video_wan mine.json" in said
    assert "lighttaew2-1 wan21-t2v-1-3b-fp16 umt5-xxl-fp8-e4m3fn-scaled wan-2-1-vae wan22-vae" in said


def test_the_plan_needs_no_internal_name_of_a_role(tmp_path: Path) -> None:
    """Roles keep their variables to themselves here, as some sites set Ansible up."""
    skip = ["disk", "gpu", "memory", "names", "os", "ports", "sources", "systemd", "time"]
    told = "ports {{ __preflight_plan.ports | map(attribute='unit') | sort | join(' ') }}"
    said = play(
        tmp_path,
        {"gpu1": "one"},
        [[role("preflight"), say(told)]],
        preflight_skip=skip,
        wanmetal_root="/opt/wanmetal",
        wanmetal_data_dir="/var/lib/wanmetal",
        handler_enabled=True,
        wan_models_share=True,
        wan_models_share_address="10.0.0.7",
        wanmetal_variant="wan",
        wanmetal_python="3.11",
    )
    units = (
        "comfyui-api.service comfyui-handler.service comfyui.service jupyterlab.service wanmetal-models-share.service"
    )
    assert f"ports {units}" in " ".join(said.split())
    assert "will be built" in " ".join(said.split())


# By kind and accelerator, what is found that the practice copy is refused for.
PRACTICE = {
    ("one", "gpu"): "NVIDIA GeForce RTX 4090",
    ("one", "cpu"): "NVIDIA GeForce RTX 4090",
    ("eight", "gpu"): "NVIDIA H100 80GB HBM3",
    ("mig", "gpu"): "NVIDIA A100-SXM4-40GB",
    ("one, without a driver", "gpu"): "NVIDIA AD10x [10de:2684]",
    ("wsl", "gpu"): "NVIDIA GeForce RTX 3080",
    ("given to a virtual machine", "cpu"): "NVIDIA AD10x [10de:2684]",
    ("no gpu", "cpu"): "",
}


def test_the_practice_copy_is_refused_where_there_is_a_gpu(tmp_path: Path) -> None:
    found = {f"gpu{number}": found for number, found in enumerate(PRACTICE.values())}
    said = play(
        tmp_path,
        {name: kind for name, (kind, _) in zip(found, PRACTICE, strict=True)},
        [[role("preflight"), say("{{ inventory_hostname }} goes on")]],
        status=2,
        own={name: {"wanmetal_accelerator": how} for name, (_, how) in zip(found, PRACTICE, strict=True)},
        preflight_skip=["arch", "disk", "memory", "names", "os", "ports", "sources", "systemd", "time"],
        wanmetal_variant="practice",
        wanmetal_python="3.11",
        wanmetal_root="/opt/wanmetal",
        wanmetal_data_dir="/var/lib/wanmetal",
    )
    refused = dict(re.findall(r"(?s)fatal: \[(\w+)\]: FAILED! =>(.*?)(?=\n\S|\Z)", said))
    for name, card in found.items():
        assert (f"{name} goes on" in said) != bool(card), said
        assert (f"practice, on a host with {card}" in refused.get(name, "")) == bool(card), said
        assert ("set wanmetal_variant: wan, and where" in refused.get(name, "")) == bool(card)
