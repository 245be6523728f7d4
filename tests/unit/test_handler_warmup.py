"""A workflow is rendered on each ComfyUI when it has started, and whatever comes of it, jobs are done."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import WORKFLOW, Script, scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_service import done, serving, until
from ansible_collections.wanmetal.comfyui.tests.web import Request
from wanmetal_handler import warmup
from wanmetal_handler.jobs import Jobs
from wanmetal_handler.warmup import Warmup
from wanmetal_handler.workflows import WorkflowError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_LOOK_S", 0.01)


@contextmanager
def warming(tmp_path: Path, url: str, **settings: Any) -> Iterator[Jobs]:
    with serving(tmp_path, url, warmup="still", **settings) as service, closing(Warmup(service.worker)):
        yield service


def states(service: Jobs) -> list[str]:
    return [one["state"] for one in service.health()[1]["comfyui"]]


def test_each_comfyui_is_warmed_up_and_nothing_is_left(tmp_path: Path) -> None:
    with scripted(takes_s=600) as (first, one), scripted() as (second, two):
        with warming(tmp_path, f"{one} {two}", concurrency=2) as service:
            until(lambda: first.queue["queue_running"] and second.graphs and states(service) == ["warming", "idle"])
            good, health = service.health()
            assert good
            assert health["workers"] == {"idle": 1, "running": 0, "away": 0, "warming": 1}
            assert done(service)["status"] == "COMPLETED"  # the other one has it
            assert len(second.graphs) == 2
            first.takes_s = 0
            first.end = "interrupted"
            until(lambda: states(service) == ["idle", "idle"])
            first.end = "success"
        [graph] = first.graphs
        assert next(iter(second.uploads)).startswith("warm-up-")
        assert graph["1"]["inputs"]["image"].startswith("handler/warm-up-")
        assert second.history == {}


def test_five_frames_are_enough(tmp_path: Path) -> None:
    settings = {**WORKFLOW["settings"], "num_frames": ["Frames", "amount"]}
    graph = json.loads(json.dumps(WORKFLOW["graph"]))
    node = next(id_ for id_, one in graph.items() if "amount" in one["inputs"])
    graph[node]["_meta"], graph[node]["inputs"]["amount"] = {"title": "Frames"}, 81
    settings = {name: place for name, place in settings.items() if place[0] != "Repeat"}
    (tmp_path / "workflows.json").write_text(json.dumps([{**WORKFLOW, "graph": graph, "settings": settings}]))
    with scripted() as (fake, url), warming(tmp_path, url):
        until(lambda: fake.graphs)
    assert fake.graphs[0][node]["inputs"]["amount"] == 5


class Restarted:
    """What of a ComfyUI's port is seen, while its stand-in stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.down = False
        self.seen = threading.Event()
        real = socket.create_connection

        def connect(*given: Any) -> Any:
            if self.down:
                self.seen.set()
                raise ConnectionRefusedError
            return real(*given)

        monkeypatch.setattr(socket, "create_connection", connect)

    def restart(self) -> None:
        self.seen.clear()
        self.down = True
        assert self.seen.wait(60)
        self.down = False


def test_a_restart_warms_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = Restarted(monkeypatch)
    port.down = True
    with scripted() as (fake, url), warming(tmp_path, url) as service:
        assert port.seen.wait(60)
        assert fake.graphs == []
        port.down = False
        for number in (1, 2, 3):
            until(lambda number=number: len(fake.graphs) == number and states(service) == ["idle"])
            port.restart()
        until(lambda: len(fake.graphs) == 4)


@pytest.mark.parametrize(
    "script", [{"reject": (400, {"error": {"message": "no model"}, "node_errors": {}})}, {"end": "error"}]
)
def test_a_failure_keeps_nobody_from_working(
    script: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    port = Restarted(monkeypatch)
    with scripted(**script) as (fake, url), warming(tmp_path, url) as service:
        until(lambda: "is not warmed up, and does jobs all the same" in caplog.text and states(service) == ["idle"])
        fake.reject, fake.end = None, "success"
        assert done(service)["status"] == "COMPLETED"
        port.restart()
        until(lambda: f"{url} is warm" in caplog.text)


def test_one_that_ends_in_its_warm_up_is_left_alone_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the warm-up that it does not stand."""
    port = Restarted(monkeypatch)
    fake: Script

    def die(handler: Request) -> None:
        port.down = True
        handler.connection.shutdown(2)

    with scripted() as (fake, url):
        take = fake.special["/upload/image"]
        fake.special["/upload/image"] = die
        with warming(tmp_path, url) as service:
            assert port.seen.wait(60)
            until(lambda: "is not warmed up" in caplog.text)
            fake.special["/upload/image"] = take
            port.restart()
            assert done(service)["status"] == "COMPLETED"
            assert len(fake.graphs) == 1
            port.restart()
            until(lambda: len(fake.graphs) == 2)


def test_the_end_of_the_service_stops_it(tmp_path: Path) -> None:
    with scripted(takes_s=600) as (fake, url):
        with warming(tmp_path, url):
            until(lambda: fake.queue["queue_running"])
        until(lambda: not fake.queue["queue_running"])


def test_a_workflow_that_it_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="handler_warmup names 'other', which is none of still"):
        serving(tmp_path, "http://127.0.0.1:1", warmup="other").__enter__()
