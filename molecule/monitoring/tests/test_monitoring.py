"""What Prometheus sees of another host, and which alert a worker that is gone makes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from testinfra import get_host
from testinfra.host import Host

testinfra_hosts = ["ansible://monitoring_hosts"]
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
ROLE = PROJECT / "roles/monitoring"
PATIENCE_S = 1200
GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
JOB = json.dumps({"prompt": GRAPH, "client_id": "tests"})
RULES = yaml.safe_load((ROLE / "files/rules.yml").read_text())["groups"][0]["rules"]
UNITS = {
    "molecule-monitoring": ("node-exporter", "postgres-exporter", "metrics.timer"),
    "molecule-monitoring-watch": ("node-exporter", "metrics.timer", "prometheus", "alertmanager"),
}


def reached(name: str) -> Host:
    return get_host(f"ansible://{name}", ansible_inventory=str(Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent))


@pytest.fixture(scope="module")
def worker() -> Host:
    """The host that is watched."""
    return reached("molecule-monitoring")


def ask(host: Host, path: str) -> Any:
    """What Prometheus answers."""
    return json.loads(host.check_output(f"curl -sf 'http://127.0.0.1:9090/api/v1/{path}'"))["data"]


def wait(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(2)


@pytest.mark.parametrize(
    ("name", "unit"), [(name, f"wanmetal-{unit}") for name, units in UNITS.items() for unit in units]
)
def test_services_run_and_have_complained_of_nothing(name: str, unit: str) -> None:
    host = reached(name)
    found = host.check_output(f"systemctl is-active {unit}; systemctl is-enabled {unit}")
    assert found.split() == ["active", "enabled"]
    assert host.check_output(f"sudo journalctl --quiet --priority=err -u {unit}") == ""


def test_the_packages_own_services_are_off(host: Host, worker: Host) -> None:
    for where, packages in (
        (host, "prometheus prometheus-alertmanager prometheus-node-exporter"),
        (worker, "prometheus-node-exporter prometheus-postgres-exporter"),
    ):
        assert set(where.run(f"systemctl is-enabled {packages}").stdout.split()) == {"disabled"}
        assert set(where.run(f"systemctl is-active {packages}").stdout.split()) == {"inactive"}


def listening(host: Host, *ports: str) -> set[str]:
    there = (line.split()[3] for line in host.check_output("ss -Hltn").splitlines())
    return {entry for entry in there if entry.rpartition(":")[2] in ports}


def test_nobody_else_is_told(host: Host, worker: Host) -> None:
    own = {"9090", "9093", "9100"}
    assert listening(host, *own) == {f"127.0.0.1:{port}" for port in own}
    address = worker.check_output("hostname -I").split()[0]
    figures = {"8405", "9100", "9187"}
    assert listening(worker, *figures) == {f"{address}:{port}" for port in figures}
    for port in figures:
        assert host.run(f"curl -sf -o /dev/null -m 60 http://{address}:{port}/metrics").rc == 0
    # This machine is none of monitoring_allow. A lab's kernel may not filter by unit, so what the units say is read.
    question = f"curl -s -o /dev/null -w %{{http_code}} http://{address}:8405/metrics"
    assert subprocess.run(question.split(), check=True, capture_output=True, text=True).stdout == "403"
    for unit in ("wanmetal-node-exporter", "wanmetal-postgres-exporter"):
        show = f"systemctl show --value {unit} --property"
        assert set(worker.check_output(f"{show} IPAddressDeny").split()) == {"::/0", "0.0.0.0/0"}
        told = set(worker.check_output(f"{show} IPAddressAllow").split()) - {"127.0.0.0/8", "::1/128", f"{address}/32"}
        assert told == {f"{host.check_output('hostname -I').split()[0]}/32"}
    queue = f"curl -sk -o /dev/null -w '%{{http_code}}' https://{address}:8390/counts"
    assert host.check_output(queue) == "404"


def test_prometheus_has_all_that_rules_and_dashboards_ask_for(host: Host, worker: Host, tmp_path: Path) -> None:
    quick = json.dumps({"verify_canary": "image", "verify_workflows": [], "verify_output_dir": str(tmp_path)})
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
    subprocess.run(["ansible-playbook", "-i", inventory, "playbooks/verify.yml", "-e", quick], cwd=PROJECT, check=True)
    # The canary leaves no trace in ComfyUI's history.
    worker.check_output(f"curl -sf -d '{JOB}' http://127.0.0.1:8188/prompt")
    wait(lambda: all(target["health"] == "up" for target in ask(host, "targets")["activeTargets"]))
    jobs = {target["labels"]["job"] for target in ask(host, "targets")["activeTargets"]}
    assert jobs == {"prometheus", "host", "haproxy", "postgresql"}
    asked = "".join(path.read_text() for path in (*ROLE.glob("files/dashboards/*.json"), ROLE / "files/rules.yml"))
    names = set(re.findall(r"\b(?:wanmetal|node|haproxy|pg)_\w+", asked)) - {"wanmetal_worker"}
    wait(lambda: names <= set(ask(host, "label/__name__/values")))
    known = {rule["name"] for group in ask(host, "rules")["groups"] for rule in group["rules"]}
    assert known == {rule["alert"] for rule in RULES}


def value(host: Host, query: str) -> list[float]:
    return [float(entry["value"][1]) for entry in ask(host, f"query?query={quote(query)}")["result"]]


def test_figures_are_those_of_the_host(host: Host, worker: Host) -> None:
    root = json.loads(worker.check_output("cat /etc/wanmetal-monitoring/metrics.json"))["root"]
    release = worker.check_output(f"basename $(readlink {root}/current)")
    assert value(host, f'wanmetal_release_info{{release="{release}", comfyui!=""}}') == [1]
    for query, wanted in {
        "wanmetal_worker_up": 1,
        "wanmetal_workers_wanted": 1,
        "wanmetal_worker_last_job_ok": 1,
        "wanmetal_handler_up": 1,
        "wanmetal_queue_up": 1,
        "wanmetal_queue_hosts": 1,
        "wanmetal_verified_release_runs": 1,
        "wanmetal_verify_problems": 0,
        "wanmetal_models_missing": 0,
        'wanmetal_attention_info{attention="torch"}': 1,
    }.items():
        wait(lambda query=query, wanted=wanted: value(host, query) == [wanted])  # type: ignore[misc]
    [end] = value(host, "wanmetal_certificate_end_timestamp_seconds")
    assert end > time.time() + 365 * 86400


def firing(host: Host) -> set[str]:
    return {alert["labels"]["alertname"] for alert in ask(host, "alerts")["alerts"] if alert["state"] == "firing"}


def test_a_worker_that_is_gone_is_an_alert_that_goes_again(host: Host, worker: Host) -> None:
    assert "WorkerDown" not in firing(host)
    worker.check_output("sudo systemctl stop comfyui")
    try:
        wait(lambda: "WorkerDown" in firing(host))
        wait(lambda: "WorkerDown" in host.check_output("curl -sf http://127.0.0.1:9093/api/v2/alerts"))
    finally:
        worker.check_output("sudo systemctl start comfyui")
    wait(lambda: "WorkerDown" not in firing(host))
