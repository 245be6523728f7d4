from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workers import files, workers

A, B, SLICE = {"uuid": "GPU-a"}, {"uuid": "GPU-b"}, {"uuid": "MIG-1"}


@pytest.mark.parametrize(
    ("instances", "given", "visible", "devices"),
    [
        ("auto", [], None, [""]),
        ("auto", [A], None, [""]),
        ("auto", [A, B], None, ["GPU-a", "GPU-b"]),
        ("auto", [A, SLICE], None, ["GPU-a", "MIG-1"]),
        ("auto", [A, B], "0", [""]),
        (1, [A, B], None, [""]),
        ("1", [A, B], None, [""]),
        (2, [], None, ["", ""]),
        (3, [A, B], None, ["GPU-a", "GPU-b", "GPU-a"]),
        (2, [A, B], "0,1", ["", ""]),
    ],
)
def test_who_gets_what(
    instances: int | str, given: list[dict[str, Any]], visible: str | None, devices: list[str]
) -> None:
    found = workers(instances, given, port=8188, base_url="http://127.0.0.1", output="/o", visible=visible)
    assert [worker["device"] for worker in found] == devices
    assert [worker["port"] for worker in found] == list(range(8188, 8188 + len(devices)))
    assert [worker["url"] for worker in found] == [f"http://127.0.0.1:{worker['port']}" for worker in found]


def test_one_is_the_service_itself() -> None:
    (only,) = workers("auto", [A], port=9000, base_url="http://[::1]", output="/o")
    assert only == {
        "name": "",
        "unit": "comfyui.service",
        "port": 9000,
        "url": "http://[::1]:9000",
        "output": "/o",
        "device": "",
    }


def test_several_have_units_of_their_own() -> None:
    found = workers(2, [], port=8188, base_url="http://127.0.0.1", output="/o")
    assert [worker["unit"] for worker in found] == ["comfyui@0.service", "comfyui@1.service"]
    assert [worker["name"] for worker in found] == ["0", "1"]
    assert [worker["output"] for worker in found] == ["/o/0", "/o/1"]


def test_each_has_a_file_of_its_own() -> None:
    found = files(workers("auto", [A, B], port=8188, base_url="http://127.0.0.1", output="/o"), "/etc/wanmetal")
    assert found == [
        {"dest": "/etc/wanmetal/comfyui@0.env", "content": "COMFYUI_PORT=8188\nCUDA_VISIBLE_DEVICES=GPU-a\n"},
        {"dest": "/etc/wanmetal/comfyui@1.env", "content": "COMFYUI_PORT=8189\nCUDA_VISIBLE_DEVICES=GPU-b\n"},
    ]


def test_without_a_device_nothing_is_said_of_it() -> None:
    assert files(workers(2, [], port=9, base_url="http://h", output="/o"), "/etc")[1]["content"] == "COMFYUI_PORT=10\n"
