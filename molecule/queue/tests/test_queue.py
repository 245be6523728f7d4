"""Two hosts behind one endpoint, as RunPod's own client sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://queue_hosts"]
PIXELS = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
CLIENT = """
import asyncio, json, os, aiohttp, runpod
runpod.api_key = os.environ["TOKEN"]
given = {"image": os.environ["PIXELS"], "num_frames": 5, "seed": 3}
e = runpod.Endpoint("any")
jobs = [e.run({"input": given}) for _ in range(4)]
print(json.dumps([job.output(timeout=300) for job in jobs]))
print(json.dumps(e.run_sync({"input": given}, timeout=300)))
print(json.dumps(e.health()))

async def main():
    async with aiohttp.ClientSession() as session:
        job = await runpod.AsyncioEndpoint("any", session).run(given)
        print(json.dumps([await job.output(timeout=300), await job.status()]))
asyncio.run(main())
"""

LOAD = """
import json, os, sys, threading, runpod
runpod.api_key = os.environ["TOKEN"]
given = {"image": os.environ["PIXELS"], "num_frames": 5}

def client(number):
    endpoint, count = runpod.Endpoint("any"), 0
    while not os.path.exists(os.environ["STOP"]):
        count += 1
        name = f"{os.environ['NAME']}-{number}-{count}"
        try:
            job = endpoint.run({"id": name, "input": {**given, "seed": count}})
            print(json.dumps([name, job.status() and bool(job.output(timeout=300)["video_url"])]), flush=True)
        except Exception as error:
            print(json.dumps([name, repr(error)]), flush=True)

threads = [threading.Thread(target=client, args=(number,)) for number in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def call(host: Host, *arguments: str) -> str:
    return str(host.check_output("sudo wanmetal-queue " + " ".join(arguments)))


@pytest.fixture
def client(host: Host, tmp_path: Path) -> dict[str, str]:
    """The environment of a client: an address, a token, and the CA that the host has made."""
    address = host.check_output("hostname -I").split()[0]
    (tmp_path / "ca.pem").write_text(host.check_output("sudo cat /etc/wanmetal-queue/ca.pem"))
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TOKEN": call(host, "token-add", "client", "tests"),
        "PIXELS": PIXELS,
        "RUNPOD_ENDPOINT_BASE_URL": f"https://{address}:8390/v2",
        "REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem"),
        "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
    }


def test_real_jobs_by_runpod_s_client(host: Host, client: dict[str, str]) -> None:
    project = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
    subprocess.run([project / "tools/venv", "handler"], check=True, capture_output=True)
    command = [str(project / ".venv/handler/bin/python"), "-c", CLIENT]
    done = subprocess.run(command, env=client, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    several, one, health, (last, status) = map(json.loads, done.stdout.splitlines())
    for output in [*several, one, last]:
        assert output["video_url"].startswith("data:video/mp4;base64,"), output
    assert status == "COMPLETED"
    assert health["jobs"]["completed"] >= 5
    found = json.loads(call(host, "status", "--json"))
    assert {entry["host"] for entry in found["hosts"]} == {"molecule-queue-1", "molecule-queue-2"}
    for entry in found["hosts"]:
        assert entry["workflows"] == ["still"]
        assert entry["release"]
        assert entry["seen_s_ago"] < 10


@pytest.mark.usefixtures("host")
def test_a_job_that_no_host_can_do_is_refused(client: dict[str, str]) -> None:
    answer = curl(client, "run", {"input": {"workflow": "Flux"}})
    assert "the workflow Flux; there are: still" in answer["error"]


def test_requests_wait_while_the_service_is_restarted(host: Host, client: dict[str, str]) -> None:
    host.check_output(
        "sudo systemd-run --no-block sh -c 'systemctl stop wanmetal-queue; sleep 3; systemctl start wanmetal-queue'"
    )
    end = time.monotonic() + 10
    while time.monotonic() < end:
        assert "jobs" in curl(client, "health", None)


def test_postgresql_is_started_again_where_it_was_killed(host: Host, client: dict[str, str]) -> None:
    host.check_output("sudo systemctl kill --signal=KILL 'postgresql@*'")
    until(lambda: "jobs" in curl(client, "health", None))


def test_nothing_listens_without_tls_or_lies_open(host: Host, client: dict[str, str]) -> None:
    listening = host.check_output("ss -Hltn").splitlines()
    addresses = [
        line.split()[3] for line in listening if line.split()[3].rpartition(":")[2] in {"8390", "8391", "5432"}
    ]
    assert all(entry.startswith(("127.0.0.1:", "[::1]:")) for entry in addresses if not entry.endswith(":8390")), (
        addresses
    )
    plain = client["RUNPOD_ENDPOINT_BASE_URL"].replace("https", "http")
    assert subprocess.run(["curl", "-sf", f"{plain}/any/health"], check=False).returncode != 0
    modes = {"/etc/wanmetal/queue.env": "600 root root", "/etc/wanmetal-queue/ca.key": "600 root root"}
    modes["/etc/wanmetal-queue/server.pem"] = "640 root wanmetal-queue"
    for path, mode in modes.items():
        assert host.check_output(f"sudo stat -c '%a %U %G' {path}") == mode


def other(name: str) -> Host:
    """One of the hosts."""
    return Host.get_host(f"ansible://{name}", ansible_inventory=inventory())


def inventory() -> str:
    return str(Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent)


def upgrade(folder: Path, *arguments: str) -> tuple[int, str]:
    """Upgrade the hosts, and return what it says."""
    project = os.environ["MOLECULE_PROJECT_DIRECTORY"]
    quick = json.dumps({"verify_canary": "image", "verify_workflows": [], "verify_output_dir": str(folder)})
    command = ["ansible-playbook", "-i", inventory(), "playbooks/upgrade.yml", "-e", quick, *arguments]
    environ = os.environ | {"ANSIBLE_VERBOSITY": "0"}
    done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return done.returncode, done.stdout + done.stderr


def test_jobs_run_through_upgrades(host: Host, client: dict[str, str], tmp_path: Path) -> None:
    """One upgrade that fails at the first host, and one that does not: clients see neither."""
    python = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / ".venv/handler/bin/python"
    stop, name, second = tmp_path / "stop", f"upgrade-{time.time_ns()}", other("molecule-queue-2")
    before = second.check_output("systemctl show comfyui comfyui-handler --property=MainPID --value")
    environ = client | {"STOP": str(stop), "NAME": name}
    with subprocess.Popen([python, "-c", LOAD], env=environ, stdout=subprocess.PIPE) as load:
        try:
            status, said = upgrade(tmp_path, "-e", '{"comfyui_extra_args": ["--no-such-flag"]}')
            assert status == 2
            assert "molecule-queue-1 gets no jobs now" in said
            assert before == second.check_output("systemctl show comfyui comfyui-handler --property=MainPID --value")
            assert draining(host) == {"molecule-queue-1": True, "molecule-queue-2": False}
            assert upgrade(tmp_path, "-e", "comfyui_preview_method=latent2rgb", "-e", "handler_keep_hours=25")[0] == 0
            assert draining(host) == {"molecule-queue-1": False, "molecule-queue-2": False}
            assert before != second.check_output("systemctl show comfyui comfyui-handler --property=MainPID --value")
        finally:
            stop.touch()
        assert load.stdout
        results = [json.loads(line) for line in load.stdout]
    assert [entry for entry in results if entry[1] is not True] == []
    assert len({id_ for id_, _ in results}) == len(results) > 20
    read = """sudo python3 -c 'import sqlite3
for row in sqlite3.connect("/var/lib/wanmetal/handler/jobs.db").execute("SELECT id FROM jobs"): print(*row)'"""
    rendered = [
        id_
        for one in ("molecule-queue-1", "molecule-queue-2")
        for id_ in other(one).check_output(read).split()
        if id_.startswith(name)
    ]
    assert sorted(rendered) == sorted(id_ for id_, _ in results)


def test_an_upgrade_that_is_killed_gives_its_host_back(host: Host) -> None:
    def handler_drains() -> bool:
        return bool(json.loads(host.check_output("curl -s http://127.0.0.1:8388/health"))["draining"])

    command = ["ansible-playbook", "-i", inventory(), "playbooks/upgrade.yml", "-e", "__handler_drain_s=60"]
    with subprocess.Popen(command, cwd=os.environ["MOLECULE_PROJECT_DIRECTORY"], start_new_session=True) as run:
        try:
            until(lambda: draining(host)["molecule-queue-1"] and handler_drains())
        finally:
            os.killpg(run.pid, signal.SIGKILL)
    until(lambda: not draining(host)["molecule-queue-1"] and not handler_drains())


def until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not happen within {seconds:g} s"
        time.sleep(0.5)


def draining(host: Host) -> dict[str, bool]:
    return {entry["host"]: entry["draining"] for entry in json.loads(call(host, "status", "--json"))["hosts"]}


@pytest.mark.usefixtures("host")
def test_no_token_of_a_host_is_shown_anywhere() -> None:
    log = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "ansible.log").read_text()
    for name in ("molecule-queue-1", "molecule-queue-2"):
        worker = other(name)
        token = worker.check_output("sudo sed -n s/^HANDLER_QUEUE_TOKEN=//p /etc/wanmetal/handler-queue.env")
        assert len(token) == 64
        assert token not in log
        assert token not in worker.check_output("sudo journalctl --no-pager -u comfyui-handler; ps -ef")


def curl(client: dict[str, str], path: str, body: Any) -> Any:
    data = [] if body is None else ["-d", json.dumps(body)]
    command = [
        "curl",
        "-s",
        "-m",
        "60",
        "--cacert",
        client["SSL_CERT_FILE"],
        "-H",
        f"Authorization: {client['TOKEN']}",
        *data,
    ]
    done = subprocess.run(
        [*command, f"{client['RUNPOD_ENDPOINT_BASE_URL']}/any/{path}"], capture_output=True, check=True
    )
    return json.loads(done.stdout)
