"""The program that writes the figures, the rules, and the dashboards: each name that is used is one that is given."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import wanmetal_metrics as metrics
import yaml
from ansible_collections.wanmetal.comfyui.tests.contract import house
from ansible_collections.wanmetal.comfyui.tests.web import Request, hosting, reply

FILES = house.ROOT / "roles/monitoring/files"
RULES = yaml.safe_load((FILES / "rules.yml").read_text(encoding="utf-8"))
CASES = yaml.safe_load((house.ROOT / "tests/data/monitoring_rules.yml").read_text(encoding="utf-8"))
DASHBOARDS = sorted(FILES.glob("dashboards/*.json"))
# Of the vendor's default-counters.csv, what rules and dashboards use.
OF_THE_GPU = {
    f"DCGM_FI_DEV_{name}" for name in ("GPU_UTIL", "FB_USED", "FB_FREE", "GPU_TEMP", "POWER_USAGE", "XID_ERRORS")
}
QUEUE = {"queue_running": [[1]], "queue_pending": [[2], [3]]}
HISTORY = {
    "a": {
        "status": {
            "status_str": "success",
            "messages": [
                ["execution_start", {"timestamp": 1000}],
                ["execution_cached", {"timestamp": 1001}],
                ["execution_success", {"timestamp": 62500}],
            ],
        }
    }
}
COUNTS = {"completed": 4, "failed": 1, "inProgress": 1, "inQueue": 2}


@pytest.fixture
def served() -> Iterator[tuple[str, dict[str, Any]]]:
    """ComfyUI, the handler and the queue in one; what is no mapping is sent as it is."""
    given: dict[str, Any] = {
        "/queue": QUEUE,
        "/history": HISTORY,
        "/health": {"jobs": COUNTS | {"timedOut": 0}},
        "/counts": {"jobs": COUNTS, "oldestWaiting": 12.5, "hosts": 2},
    }

    def answer(request: Request) -> None:
        found = given.get(request.path.partition("?")[0])
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        reply(request, data, 404 if found is None else 200)

    with hosting(answer) as url:
        yield url, given


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "releases/one").mkdir(parents=True)
    (folder / "releases/one/release.json").write_text('{"comfyui": {"version": "0.33.0"}}')
    (folder / "current").symlink_to("releases/one")
    (folder / "verified.json").write_text('{"release": "one"}')
    (folder / "verify.json").write_text('{"problems": 2}')
    return folder


def settings(root: Path, url: str, **others: Any) -> dict[str, Any]:
    nothing = {"workers": {"comfyui.service": url}, "handler": url, "queue": url, "certificate": "", "models": {}}
    return {"root": str(root), "attention": "torch", **nothing, **others}


def figures(given: Mapping[str, Any]) -> dict[str, float]:
    """What is written, by names with labels."""
    lines = metrics.text(metrics.samples(given)).splitlines()
    return {name: float(value) for line in lines if line[0] != "#" for name, _, value in [line.rpartition(" ")]}


def test_a_host_with_everything(served: tuple[str, dict[str, Any]], root: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"123")
    (tmp_path / "part").write_bytes(b"1")
    models = {str(tmp_path / name): size for name, size in (("whole", 3), ("part", 3), ("none", 10), ("unknown", None))}
    found = figures(settings(root, served[0], models=models))
    for name in ("wanmetal_release_built", "wanmetal_verified", "wanmetal_verify"):
        assert found.pop(f"{name}_timestamp_seconds") == pytest.approx(time.time(), abs=3600)
    assert found == {
        "wanmetal_releases": 1,
        'wanmetal_release_info{comfyui="0.33.0",release="one"}': 1,
        "wanmetal_verified_release_runs": 1,
        "wanmetal_verify_problems": 2,
        "wanmetal_workers_wanted": 1,
        'wanmetal_worker_up{worker="comfyui.service"}': 1,
        'wanmetal_worker_queue{state="running",worker="comfyui.service"}': 1,
        'wanmetal_worker_queue{state="pending",worker="comfyui.service"}': 2,
        'wanmetal_worker_last_job_seconds{worker="comfyui.service"}': 61.5,
        'wanmetal_worker_last_job_ok{worker="comfyui.service"}': 1,
        'wanmetal_attention_info{attention="torch"}': 1,
        "wanmetal_models_missing": 3,
        "wanmetal_models_missing_bytes": 12,
        "wanmetal_handler_up": 1,
        **{f'wanmetal_handler_jobs{{status="{status}"}}': number for status, number in COUNTS.items()},
        'wanmetal_handler_jobs{status="timedOut"}': 0,
        "wanmetal_queue_up": 1,
        **{f'wanmetal_queue_jobs{{status="{status}"}}': number for status, number in COUNTS.items()},
        "wanmetal_queue_oldest_waiting_seconds": 12.5,
        "wanmetal_queue_hosts": 2,
    }


@pytest.mark.parametrize(
    "answer",
    [
        *(None, b"", b"<html>", [], {}, {"queue_running": []}, b"\xff" * 9, b"[" * 100_000),
        {"queue_running": 1, "queue_pending": None, "jobs": []},
    ],
)
def test_a_worker_that_answers_nothing_of_use_is_not_up(
    answer: Any, served: tuple[str, dict[str, Any]], root: Path
) -> None:
    url, given = served
    given.update(dict.fromkeys(given, answer))
    found = figures(settings(root, url))
    assert found['wanmetal_worker_up{worker="comfyui.service"}'] == 0
    assert (found["wanmetal_handler_up"], found["wanmetal_queue_up"]) == (0, 0)
    assert not [name for name in found if "jobs" in name or "worker_queue" in name]


def test_what_speaks_no_http_is_not_up(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answers() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as one:
                        one.recv(4096)
                        one.sendall(b"SSH-2.0-x\r\n\r\n")

        threading.Thread(target=answers, daemon=True).start()
        found = figures(settings(root, f"http://127.0.0.1:{server.getsockname()[1]}"))
    assert (found["wanmetal_handler_up"], found["wanmetal_queue_up"]) == (0, 0)


@pytest.mark.parametrize("number", ["x", None, [1], 10**400, float("inf"), float("nan")])
def test_numbers_of_others_that_are_none_end_nothing(
    number: Any, served: tuple[str, dict[str, Any]], root: Path
) -> None:
    url, given = served
    times = [["execution_start", {"timestamp": number}], ["execution_success", {"timestamp": 2}]]
    given["/history"] = {"a": {"status": {"status_str": "success", "messages": times}}}
    given["/health"] = {"jobs": {"completed": number}}
    given["/counts"] = {"jobs": {"completed": number}, "oldestWaiting": number, "hosts": number}
    found = figures(settings(root, url))
    assert found["wanmetal_handler_up"] == 1
    assert found['wanmetal_handler_jobs{status="completed"}'] == 0


@pytest.mark.parametrize(
    "history", [{}, [], {"a": {}}, {"a": {"status": None}}, {"a": {"status": {"messages": [["execution_start", {}]]}}}]
)
def test_a_worker_without_a_job_says_nothing_of_it(
    history: Any, served: tuple[str, dict[str, Any]], root: Path
) -> None:
    served[1]["/history"] = history
    found = figures(settings(root, served[0]))
    assert not [name for name in found if "last_job" in name]


def test_a_host_before_its_first_release(tmp_path: Path) -> None:
    """The port is closed and nothing is there; that is told, and nothing is made up."""
    found = figures(settings(tmp_path, "http://127.0.0.1:9", handler="", queue=""))
    assert found == {
        "wanmetal_releases": 0,
        "wanmetal_verified_release_runs": 0,
        "wanmetal_workers_wanted": 1,
        'wanmetal_worker_up{worker="comfyui.service"}': 0,
        'wanmetal_attention_info{attention="torch"}': 1,
        "wanmetal_models_missing": 0,
        "wanmetal_models_missing_bytes": 0,
    }


def test_a_host_of_the_queue_alone(served: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    found = figures(settings(tmp_path, served[0], workers={}, handler=""))
    assert {name.partition("{")[0] for name in found} == {
        *("wanmetal_queue_up", "wanmetal_queue_jobs", "wanmetal_queue_oldest_waiting_seconds", "wanmetal_queue_hosts")
    }


def test_the_file_is_whole_and_is_what_prometheus_reads(
    served: tuple[str, dict[str, Any]], root: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out/wanmetal.prom"
    target.parent.mkdir()
    source = tmp_path / "settings.json"
    source.write_text(json.dumps(settings(root, served[0], attention='a "b"\n\\')))
    for _turn in range(2):
        subprocess.run([sys.executable, "-I", metrics.__file__, source, target], check=True, umask=0o027)
    assert os.listdir(target.parent) == [target.name]  # noqa: PTH208
    done = subprocess.run(["promtool", "check", "metrics"], input=target.read_bytes(), capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


# -- rules and dashboards


def test_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text((FILES / "rules.yml").read_text(encoding="utf-8"))
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(CASES))
    done = subprocess.run(
        ["promtool", "test", "rules", "cases.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def test_each_alert_has_a_case_and_says_what_to_do() -> None:
    fire = {one["alertname"] for case in CASES["tests"] for one in case["alert_rule_test"] if one.get("exp_alerts")}
    assert fire == {alert["alert"] for alert in alerts()}
    for alert in alerts():
        assert alert["annotations"].keys() == {"summary", "fix"}
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}


def expressions(dashboard: Path) -> list[str]:
    return [
        target["expr"] for panel in json.loads(dashboard.read_text())["panels"] for target in panel.get("targets", [])
    ]


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:wanmetal|node|haproxy|pg|DCGM)_\w+", expression))


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_show_what_is_given(dashboard: Path) -> None:
    shown = set().union(*map(names, expressions(dashboard)))
    assert shown
    assert {name for name in shown if name.startswith("wanmetal_")} <= metrics.METRICS.keys()
    assert {name for name in shown if name.startswith("DCGM_")} <= OF_THE_GPU


def test_rules_ask_for_what_is_given() -> None:
    asked = set().union(*(names(alert["expr"]) for alert in alerts()))
    assert {name for name in asked if name.startswith("wanmetal_")} <= metrics.METRICS.keys()
    assert {name for name in asked if name.startswith("DCGM_")} <= OF_THE_GPU
    assert len(DASHBOARDS) == 1


FLEET = {
    "gpu_hosts": {
        "hosts": {
            "gpu1": {},
            "gpu2": {"monitoring_listen": "0.0.0.0", "ansible_host": "gpu2.example", "wanmetal_accelerator": "cpu"},  # noqa: S104
            "gpu3": {"monitoring_listen": "fd00::3", "monitoring_port": 9200, "queue_database_url": "postgresql://x"},
            "gpu4": {"monitoring_enabled": False},
        },
        "vars": {"monitoring_enabled": True},
    },
    "queue_hosts": {"hosts": {"gpu1": None, "gpu3": None}},
    "monitoring_hosts": {"hosts": {"watch": None}},
}
TARGETS = {
    "prometheus": {"127.0.0.1:9090": "watch"},
    "host": {
        "10.0.0.11:9100": "gpu1",
        "gpu2.example:9100": "gpu2",
        "[fd00::3]:9200": "gpu3",
        "127.0.0.1:9100": "watch",
    },
    "gpu": {"10.0.0.11:9400": "gpu1", "[fd00::3]:9400": "gpu3"},
    "haproxy": {"10.0.0.11:8405": "gpu1", "[fd00::3]:8405": "gpu3"},
    "postgresql": {"10.0.0.11:9187": "gpu1"},
}


def test_targets_are_made_from_the_inventory(tmp_path: Path) -> None:
    (tmp_path / "hosts.json").write_text(json.dumps(FLEET))
    role = house.ROOT / "roles/monitoring"
    made = {"config": f"{{{{ lookup('ansible.builtin.template', '{role}/templates/prometheus.yml.j2') }}}}"}
    made["unreachable"] = "{{ __monitoring_unreachable }}"
    files = [str(role / name / "main.yml") for name in ("defaults", "vars")]
    values = {"ansible_python_interpreter": sys.executable, **yaml.safe_load(Path(files[0]).read_text())}
    plays: list[dict[str, Any]] = []
    for listen in ("", "127.0.0.1", "10.0.0.11"):
        if listen:
            plays.append({"hosts": "gpu1", "tasks": [{"ansible.builtin.set_fact": {"monitoring_listen": listen}}]})
        task: dict[str, Any] = {"delegate_to": "localhost", "connection": "local", "vars": {"made": made}}
        task["ansible.builtin.copy"] = {"content": "{{ made | to_json }}", "dest": f"{tmp_path}/made{listen}.json"}
        plays.append({"hosts": "watch", "vars_files": files[1:], "vars": values, "tasks": [task]})
    (tmp_path / "play.yml").write_text(json.dumps([{"gather_facts": False, **play} for play in plays]))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", tmp_path / "hosts.json", tmp_path / "play.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for listen in ("", "127.0.0.1"):
        assert json.loads((tmp_path / f"made{listen}.json").read_text())["unreachable"] == ["gpu1"]
    found = json.loads((tmp_path / "made10.0.0.11.json").read_text())
    assert found["unreachable"] == []
    (tmp_path / "prometheus.yml").write_text(found["config"])
    (tmp_path / "rules.yml").write_text((FILES / "rules.yml").read_text())
    subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], check=True, capture_output=True)
    config = yaml.safe_load(found["config"])
    assert {
        job["job_name"]: {one["targets"][0]: one["labels"]["instance"] for one in job["static_configs"]}
        for job in config["scrape_configs"]
    } == TARGETS
