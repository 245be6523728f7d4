"""Packs in a release, and what becomes of releases whose packs are not whole. The tests build upon each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = "/srv/wanmetal/hosts/molecule-nodes"
CURRENT = f"{ROOT}/current/ComfyUI/custom_nodes/good-pack"
DATA = "/var/lib/wanmetal"


def play(name: str, *arguments: str, ok: bool) -> str:
    scenario = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
    done = subprocess.run(
        ["ansible-playbook", "-i", inventory, scenario / name, *arguments],
        cwd=os.environ["MOLECULE_PROJECT_DIRECTORY"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # where molecule has Ansible tell of failures
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout)
    assert (done.returncode == 0) == ok, done.stdout[-3000:]
    return " ".join(done.stdout.split())


def deploy(state: str, *arguments: str, ok: bool = True) -> str:
    return play("converge.yml", "-e", f"nodes_state={state}", *arguments, ok=ok)


def refused_lock(state: str) -> str:
    return play("prepare.yml", "-e", json.dumps({"nodes_locked": [state]}), ok=False)


def types(host: Any) -> set[str]:
    return set(json.loads(host.check_output("curl --silent --fail http://127.0.0.1:8188/object_info")))


def release(host: Any) -> str:
    return str(host.file(f"{ROOT}/current").linked_to)


def environment(host: Any) -> str:
    return str(host.check_output(f"readlink --canonicalize {ROOT}/current/venv"))


def used(host: Any) -> int:
    """Megabytes of all releases and environments, those that are linked counted once."""
    return int(host.check_output(f"du -sc --block-size=1M {ROOT}/releases {ROOT}/environments").split()[-2])


@pytest.fixture(scope="module")
def first(host: Any) -> tuple[str, str]:
    """Release and environment that converge has made."""
    return release(host), environment(host)


def test_second_run_left_the_process_alone(host: Any) -> None:
    pid = host.check_output("systemctl show comfyui --property=MainPID")
    assert f"{pid}\n" in host.file("/run/main-process").content_string


def test_the_pack_works(host: Any, first: tuple[str, str]) -> None:
    assert "GoodNode" in types(host)
    assert "NewNode" not in types(host)
    assert first[1].startswith(f"{ROOT}/environments/comfyui-")


def test_the_release_tells_its_packs(host: Any) -> None:
    record = json.loads(host.file(f"{ROOT}/current/release.json").content_string)
    assert list(record["custom_nodes"]) == ["good-pack"]
    assert record["custom_nodes"]["good-pack"]["node_types"] == ["GoodNode"]
    assert len(record["custom_nodes"]["good-pack"]["commit"]) == 40


def test_the_service_cannot_change_a_pack(host: Any) -> None:
    owners = host.check_output(f"find {CURRENT}/ -printf '%U\\n' | sort --unique").split()
    assert owners == ["0"]
    assert host.run(f"runuser --user wanmetal -- touch {CURRENT}/__init__.py").rc != 0


def test_bytecode_is_there_and_root_s(host: Any) -> None:
    sources = host.check_output(f"ls {CURRENT}/../../*.py | wc -l")
    assert host.check_output(f"ls {CURRENT}/../../__pycache__/*.pyc | wc -l") == sources
    assert host.file(f"{CURRENT}/__pycache__").is_directory


def test_folders_lead_to_the_data(host: Any) -> None:
    assert host.file(f"{CURRENT}/ckpts").linked_to == f"{DATA}/models/node_ckpts/good-pack"
    assert host.run(f"runuser --user wanmetal -- touch {CURRENT}/ckpts/x").rc != 0
    host.check_output(f"runuser --user wanmetal -- touch {CURRENT}/written/x")
    assert host.file(f"{DATA}/home/.cache/custom_nodes/good-pack/written/x").exists


def test_a_pack_that_contradicts_another_is_named() -> None:
    said = refused_lock("disagreeing")
    assert "humanize: good-pack wants <5; disagreeing-pack wants >=5" in said


def test_a_pack_cannot_change_torch() -> None:
    said = refused_lock("other_torch")
    assert "torch-pack wants ==2.5.1" in said
    assert "the constraints wants ==2.10.0" in said


def test_packs_without_a_lock_of_theirs_are_refused(host: Any, first: tuple[str, str]) -> None:
    said = deploy("second", "-e", '{"nodes_with_lock": false}', ok=False)
    assert "was made without good-pack" in said
    assert "playbooks/lock.yml" in said
    assert release(host) == first[0]


def test_another_commit_is_a_small_release(host: Any, first: tuple[str, str]) -> None:
    before, started = used(host), time.monotonic()
    deploy("second")
    seconds, grown = time.monotonic() - started, used(host) - before
    print(f"{seconds:.1f} s with the switch, {grown} MB")
    assert types(host) >= {"GoodNode", "NewNode"}
    assert release(host) != first[0]
    assert environment(host) == first[1]
    assert grown < 100


def test_a_release_whose_packs_are_broken_is_taken_back(host: Any) -> None:
    before = release(host)
    said = deploy("faulty", ok=False)
    assert (
        "node pack broken-pack could not be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    ) in said
    assert "node pack skewed-pack lacks node type SkewedNode: AttributeError: module 'comfy.utils' has no" in said
    assert "node pack old-pack lacks node type NotThereYet: the log gives no reason" in said
    assert "The host is back on release" in said
    assert release(host) == before
    assert "NewNode" in types(host)


def test_a_pack_goes_again_and_the_oldest_release_with_it(host: Any, first: tuple[str, str]) -> None:
    second = release(host)
    deploy("other", "-e", "comfyui_releases_keep=1")
    assert "OldNode" in types(host)
    assert "GoodNode" not in types(host)
    assert not host.file(CURRENT).exists
    assert not host.file(first[0]).exists
    assert host.file(second).exists
    assert environment(host) == first[1]


PLACED = f"{DATA}/user/default/workflows/Wan22-5B.json"


def test_comfyui_lists_the_workflows_that_the_host_has_the_models_for(host: Any) -> None:
    assert host.file(PLACED).user == "wanmetal"
    listed = host.check_output("curl --silent --fail 'http://127.0.0.1:8188/userdata?dir=workflows'")
    assert json.loads(listed) == ["Wan22-5B.json"]
    assert host.file(f"{DATA}/input/wanmetal-example.png").exists


def test_a_workflow_that_its_user_has_changed_stays_and_the_rest_goes(host: Any) -> None:
    host.run(f"echo '{{\"nodes\": []}}' > {PLACED}")
    assert "have been changed since they were placed" in deploy("other", "--tags=workflows")
    deploy("other", "--tags=workflows", "-e", '{"workflows_enabled": false}')
    assert host.file(PLACED).content_string == '{"nodes": []}\n'
    assert not host.file(f"{DATA}/input/wanmetal-example.png").exists
    assert not host.file(f"{ROOT}/workflows.json").exists
