"""The README's commands, run as a person would, on a fresh lab host. The tests build on each other, in this order."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows

from tests.e2e import frontend, tiny_worker
from tests.tiny import rendering
from tests.worker import LAB, PROJECT, STATE, Worker, changed, run

worker = Worker("lab1")
OUTPUT = PROJECT / "lab-output"
QUICK = ("-e", '{"verify_canary": "image", "verify_workflows": []}')  # without the video of a model


@pytest.fixture(scope="module", autouse=True)
def lab() -> Iterator[None]:
    run(*LAB, "remove", "--missing-ok", "lab1")
    yield
    run("./deploy", "--lab-remove", "lab1")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout with nothing but the built collection and an inventory."""
    folder = tmp_path_factory.mktemp("installed")
    run("ansible-galaxy", "collection", "build", "--output-path", folder)
    (archive,) = folder.glob("wanmetal-comfyui-*.tar.gz")
    run("ansible-galaxy", "collection", "install", "--offline", "-p", folder / "collections", archive, cwd=folder)
    (folder / "group_vars").mkdir()
    (folder / "group_vars/gpu_hosts.yml").write_text((PROJECT / "inventories/lab/group_vars/gpu_hosts.yml").read_text())
    (folder / "hosts.yml").write_text((STATE / "hosts.yml").read_text())
    return folder


def from_collection(installed: Path, name: str, *arguments: str) -> str:
    """What a playbook of the installed collection says."""
    return run(
        "ansible-playbook",
        f"wanmetal.comfyui.{name}",
        *("-i", "hosts.yml", "--limit", worker.name, *arguments),
        cwd=installed,
        ANSIBLE_COLLECTIONS_PATH=str(installed / "collections"),
    ).stdout


def read_report() -> dict[str, Any]:
    return dict(json.loads((OUTPUT / "report-lab1.json").read_text()))


def test_first_lab_deploy() -> None:
    for old in OUTPUT.glob("*"):
        old.unlink()
    run("./deploy", "--lab", "--check", "--diff")
    said = run("./deploy", "--lab").stdout
    assert (OUTPUT / "canary-lab1.mp4").read_bytes()[4:8] == b"ftyp"
    report = read_report()
    assert report["problems"] == []
    assert report["canary"]["workflow"]["name"] == "Native-TextToVideo"
    assert report["canary"]["workflow"]["details"]["frames"] == 9
    assert "0.3.75" in str(report["versions"])
    for words in ("Installed", "Time", "ssh ", "8188", "--lab-stop", "--lab-remove"):
        assert words in said
    command = re.findall(r"ssh \S.*-L 8188:\S+ .*", said)[-1].strip()
    with tiny_worker.tunnel(command) as address:
        stats = requests.get(f"{address}/system_stats", timeout=60).json()
        page = requests.get(address, timeout=60).text
    assert stats["system"]["comfyui_version"] == "0.3.75"
    assert "<title>ComfyUI</title>" in page


def test_second_lab_deploy_changes_nothing() -> None:
    pid = worker.main_pid()
    worker.ssh(f"echo MainPID={pid} | sudo tee /run/main-process")
    said = run("./deploy", "--lab").stdout
    assert changed(said) == 0
    assert "Nothing changed" in said
    assert worker.main_pid() == pid


def test_the_worker_is_like_those_of_the_scenario_default(tmp_path: Path) -> None:
    hosts = [f"--hosts=ssh://{worker.name}", f"--ssh-config={STATE / 'ssh_config'}", "--sudo"]
    once = f"--ssh-extra-args=-o ControlMaster=auto -o ControlPersist=60 -o ControlPath={tmp_path}/ssh"
    run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *hosts, once, "molecule/default/tests")


def test_the_installed_collection_finds_nothing_to_change(installed: Path) -> None:
    pid = worker.main_pid()
    assert changed(from_collection(installed, "site")) == 0
    assert worker.main_pid() == pid
    assert "no problems" in from_collection(installed, "verify", *QUICK)
    assert (installed / f"reports/report-{worker.name}.json").is_file()


def test_systemctl_status_as_written() -> None:
    assert "active (running)" in worker.ssh("systemctl status comfyui --no-pager")


def test_literal_command_on_this_machine_changes_nothing() -> None:
    done = run("ansible-playbook", "site.yml", "-i", "gpu_hosts", "--check", ok=False)
    if Path("/run/systemd/system").is_dir():
        pytest.skip("this machine could be a worker: what --check says of it depends on its GPU")
    assert done.returncode != 0
    assert "found   another init, or none" in done.stdout
    assert changed(done.stdout) == 0


def test_unknown_setting_is_refused_with_the_closest_name() -> None:
    pid = worker.main_pid()
    done = run("./deploy", "--lab", "-e", "comfyui_prot=8190", ok=False)
    assert done.returncode != 0
    assert "comfyui_port" in done.stdout
    assert worker.main_pid() == pid


def test_setting_changes_and_comes_back() -> None:
    pid = worker.main_pid()
    diff = worker.playbook("site.yml", "--check", "--diff", "-e", "comfyui_preview_method=latent2rgb")
    assert "latent2rgb" in diff
    assert worker.main_pid() == pid
    assert changed(worker.playbook("site.yml", "-e", "comfyui_preview_method=latent2rgb")) == 1
    assert "latent2rgb" in worker.ssh("systemctl cat comfyui")
    assert changed(worker.playbook("site.yml", "--tags", "comfyui")) == 1
    assert "latent2rgb" not in worker.ssh("systemctl cat comfyui")


def test_setting_that_breaks_the_start_is_taken_back() -> None:
    said = worker.playbook("site.yml", "-e", '{"comfyui_extra_args": ["--no-such-flag"]}', ok=False)
    assert "did not become healthy" in said
    assert "unrecognized arguments: --no-such-flag" in said
    assert "back on its earlier settings" in said
    assert "--no-such-flag" not in worker.ssh("systemctl cat comfyui")
    assert worker.ssh("curl --silent --fail http://127.0.0.1:8188/system_stats")


def killed(task: str, gone: str, until: str, log: Path) -> bool:
    """Kill a deploy in a task, or what it runs on the host once a file is there. Says whether that was in time."""
    root = "/srv/wanmetal/hosts/lab1"
    worker.ssh(f"sudo sh -c 'cd {root} && rm -rf releases/*/release.json {gone}'")
    if until:  # what runs on the host would go on to its end
        pid = """$(sed 's/.*"pid": *\\([0-9]*\\).*/\\1/' releases/.lock)"""
        kill = f"cd {root}; until ls -d {until}; do sleep 0.1; done; kill -9 {pid}"
        worker.ssh(
            "sudo systemctl stop kill-build.service; sudo systemd-run --quiet --collect --unit=kill-build "
            f"--property=RuntimeMaxSec=900 sh -c {shlex.quote(kill)}"
        )
    with log.open("w") as out:
        process = subprocess.Popen(
            ["ansible-playbook", "site.yml", *worker.inventory],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        deadline = time.monotonic() + 600
        while f": {task}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        if not until:
            time.sleep(1)
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait() != 0


@pytest.mark.parametrize(
    ("task", "gone", "until"),
    [
        ("Build release", "environments/comfyui-*", "environments/comfyui-*/requirements.txt"),
        ("Build release", "", "releases/.*.new/ComfyUI/main.py"),
        ("Switch to", "", ""),
    ],
)
def test_killed_deploy_is_finished_by_the_next(
    task: str, gone: str, until: str, installed: Path, tmp_path: Path
) -> None:
    # On a quiet machine a build may be over before the kill comes.
    assert any(killed(task, gone, until, tmp_path / "log") for _ in range(5)), (tmp_path / "log").read_text()
    said = from_collection(installed, "site") if gone else worker.playbook("site.yml")
    assert changed(said) > 0 or not until  # a switch may have come to its end on the host


def test_killed_deploys_have_left_nothing_to_do(tmp_path: Path) -> None:
    path = ":".join(f"/{folder}" for folder in ("usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"))
    said = run(sys.executable, "-m", "tests.bench.deploy", "--host", worker.name, PATH=path).stdout  # as documented
    assert re.search(r"^unchanged_deploy_s +\d", said, re.MULTILINE)
    assert "no problems" in worker.playbook("playbooks/verify.yml", *QUICK, "-e", f"verify_output_dir={tmp_path}")


def see_in_status(text: str) -> None:
    status = "systemctl status comfyui --no-pager"
    worker.ssh(f"for n in $(seq 300); do {status} | grep --quiet '{text}' && exit; sleep 1; done; {status}; exit 1")


def test_a_host_that_loses_power_amid_a_switch_serves_what_was_verified(tmp_path: Path) -> None:
    """What is new never comes to its end, so the power goes before."""
    before = worker.ssh("cat /srv/wanmetal/hosts/lab1/verified.json; cat /etc/systemd/system/comfyui.service")
    hook = tmp_path / "before-start"
    hook.write_text("#!/bin/sh\nexec sleep infinity\n")
    command = ["ansible-playbook", "site.yml", *worker.inventory, "-e", f"comfyui_before_start={hook}"]
    with (tmp_path / "log").open("w") as out:
        process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        worker.ssh("timeout 600 sh -c 'until pgrep --full --exact \"sleep infinity\"; do sleep 0.5; done'")
        worker.cut_power()
        assert process.wait() != 0, (tmp_path / "log").read_text()
    worker.up()
    see_in_status("Active: active")
    assert worker.ssh("cat /srv/wanmetal/hosts/lab1/verified.json; cat /etc/systemd/system/comfyui.service") == before
    assert "is back on release" in worker.ssh("sudo journalctl --unit wanmetal-rollback-comfyui.service --output cat")
    assert changed(worker.playbook("site.yml")) == 0


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    worker.ssh("sudo systemctl stop comfyui")
    said = worker.playbook("playbooks/verify.yml", *QUICK, "-e", f"verify_output_dir={tmp_path}", ok=False)
    assert "comfyui.service is inactive" in said
    assert "failed=1" in said
    # A user that somebody has removed is made again, with nothing built.
    worker.ssh("sudo sh -c 'systemctl stop jupyterlab && userdel wanmetal-jupyter'")
    assert changed(worker.playbook("site.yml")) == 3


def test_two_deploys_at_once() -> None:
    worker.ssh(
        "sudo sh -c 'cd /srv/wanmetal/hosts/lab1 && rm -f releases/*/release.json environments/comfyui-*/complete'"
    )
    command = ["ansible-playbook", "site.yml", *worker.inventory, "-e", "comfyui_max_upload_mb=101"]
    first, second = (
        subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    outputs = [process.communicate()[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert sum(map(changed, outputs)) == 2, outputs  # one build and one switch, by whichever came first


def test_several_workers() -> None:
    two = ["-e", "comfyui_instances=2"]
    verify = ["playbooks/verify.yml", *two, *QUICK, "-e", f"verify_output_dir={OUTPUT}"]
    assert changed(worker.playbook("site.yml", *two)) == 1
    see_in_status("2 of 2 workers answer")
    assert worker.ssh("systemctl is-active comfyui@0 comfyui@1").split() == ["active", "active"]
    assert changed(worker.playbook("site.yml", *two)) == 0
    worker.ssh("sudo systemctl stop comfyui@1")
    see_in_status("1 of 2 workers answer; silent: comfyui@1")
    said = worker.playbook(*verify, ok=False)
    assert "comfyui@1.service is inactive" in said
    assert changed(worker.playbook("site.yml", *two, "--tags", "comfyui")) == 1
    assert "no problems" in worker.playbook(*verify)
    assert changed(worker.playbook("site.yml", "--tags", "comfyui")) == 1
    assert worker.ssh("systemctl is-active comfyui comfyui@0 comfyui@1", ok=False).split() == [
        "active",
        *["inactive"] * 2,
    ]


def test_the_proof_of_a_gpu_runs_on_a_worker() -> None:
    _gpu_tests("not slow")


@pytest.mark.slow
def test_the_trial_of_a_gpu_is_rehearsed_on_a_worker() -> None:
    _gpu_tests("slow")


def _gpu_tests(marked: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marked, "tests/gpu/test_check.py"]
    assert "skipped" not in run(*command, WANMETAL_TORCH_HOST=worker.name).stdout


@pytest.fixture(scope="module")
def equipped() -> Iterator[tuple[ComfyUIClient, dict[str, object]]]:
    """The worker with tiny models, and its node types."""
    tiny_worker.equip(worker, rendering.names())
    with tiny_worker.forward(worker) as address:
        client = ComfyUIClient(address, 60)
        yield client, client.object_info()


@pytest.mark.parametrize("name", rendering.names())
def test_workflow_renders_with_tiny_models(name: str, equipped: tuple[ComfyUIClient, dict[str, object]]) -> None:
    rendering.prove(*equipped, name, vary=name in rendering.few())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(rendering.names()) - set(rendering.few())))
def test_workflow_renders_another_seed_and_prompt(name: str, equipped: tuple[ComfyUIClient, dict[str, object]]) -> None:
    rendering.prove(*equipped, name)


@pytest.mark.slow
def test_browser_opens_the_workflows_and_makes_the_same_for_the_api(
    equipped: tuple[ComfyUIClient, dict[str, object]],
) -> None:
    kinds = {name: {node["class_type"] for node in workflows.load_api(name).values()} for name in workflows.index()}
    names = [name for name, used in kinds.items() if used <= set(equipped[1])]
    for name, found in frontend.browse(worker, equipped[0].url, names).items():
        frontend.assert_same(name, found, equipped[1])


def test_uninstall_asks_and_keeps_the_data() -> None:
    # The hosts of a lab share their package cache, which other tests use meanwhile: another one is removed here.
    cache = "/var/cache/wanmetal"
    worker.ssh(f"sudo mkdir -p {cache}/uv && sudo touch {cache}/.wanmetal {cache}/uv/kept")

    def uninstall(**more: object) -> str:
        given = {"uninstall_confirm": "yes", "wanmetal_cache_dir": cache, **more}
        return worker.playbook("playbooks/uninstall.yml", "-e", json.dumps(given))

    said = worker.playbook("playbooks/uninstall.yml", ok=False)
    assert "nothing was removed" in said
    worker.ssh("sudo touch /var/lib/wanmetal/output/kept.mp4")
    uninstall()
    assert "could not be found" in worker.ssh("systemctl status comfyui 2>&1", ok=False)
    worker.ssh("test ! -e /etc/wanmetal && sudo test -e /var/lib/wanmetal/output/kept.mp4")
    worker.ssh(f"test ! -e {cache}")
    worker.ssh("sudo useradd --system --gid wanmetal --comment 'wanmetal handler' wm-earlier")  # by a setting of before
    uninstall(wanmetal_uninstall_data=True)
    worker.ssh("test ! -e /var/lib/wanmetal && ! getent passwd wm-earlier && ! getent group wanmetal")
    assert changed(uninstall()) == 0
