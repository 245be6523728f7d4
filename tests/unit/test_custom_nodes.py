from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release import node_types as custom_nodes
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.node_types import (
    Startup,
    look_at_packs,
    parse_log,
    problems,
    recorded,
)
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.custom_nodes import (
    PackError,
    lock_problem,
    packs,
    wrong_entry,
)

FOLDER = "/opt/wanmetal/releases/0.3.75-1/ComfyUI/custom_nodes"

BROKEN_IMPORT = f"""\
Traceback (most recent call last):
  File "/opt/wanmetal/current/ComfyUI/nodes.py", line 2131, in load_custom_node
    module_spec.loader.exec_module(module)
  File "{FOLDER}/broken/__init__.py", line 1, in <module>
    import nowhere_to_be_found
ModuleNotFoundError: No module named 'nowhere_to_be_found'

Cannot import {FOLDER}/broken module for custom nodes: No module named 'nowhere_to_be_found'

Import times for custom nodes:
   0.0 seconds: {FOLDER}/websocket_image_save.py
   0.0 seconds (IMPORT FAILED): {FOLDER}/broken
   1.5 seconds: {FOLDER}/ComfyUI-KJNodes

Context impl SQLiteImpl.
"""
SKEWED = """\
[ERROR] An error occurred while retrieving information for the 'Skewed' node.
Traceback (most recent call last):
  File "/opt/wanmetal/current/ComfyUI/server.py", line 677, in get_object_info
    out[x] = node_info(x)
AttributeError: module 'comfy.utils' has no attribute 'not_yet'

[ERROR] An error occurred while retrieving information for the 'With a space' node.
Traceback (most recent call last):
  File "x.py", line 1, in y

  File "x.py", line 2, in z
KeyError: 'a'
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Startup()),
        ("Starting server\nTo see the GUI go to: http://127.0.0.1:8188\n", Startup()),
        (
            BROKEN_IMPORT,
            Startup(
                seconds={"websocket_image_save.py": 0.0, "broken": 0.0, "ComfyUI-KJNodes": 1.5},
                failed={"broken": "ModuleNotFoundError: No module named 'nowhere_to_be_found'"},
            ),
        ),
        (
            SKEWED,
            Startup(
                types={
                    "Skewed": "AttributeError: module 'comfy.utils' has no attribute 'not_yet'",
                    "With a space": "KeyError: 'a'",
                }
            ),
        ),
        (
            f"Skip {FOLDER}/empty module for custom nodes due to the lack of NODE_CLASS_MAPPINGS (need one).",
            Startup(failed={"empty": "the lack of NODE_CLASS_MAPPINGS (need one)."}),
        ),
        (
            f"Error while calling comfy_entrypoint in {FOLDER}/v3: it is closed",
            Startup(failed={"v3": "it is closed"}),
        ),
        (
            f"Cannot import {FOLDER}/with space module for custom nodes: told here",
            Startup(failed={"with space": "told here"}),
        ),
        (
            f"  12.3 seconds (IMPORT FAILED): {FOLDER}/silent",
            Startup(seconds={"silent": 12.3}, failed={"silent": "its log says no more"}),
        ),
        (
            "\x1b[36;20m[comfyui_controlnet_aux]\x1b[0m | INFO -> Some nodes failed to load:\n"
            "\tFailed to import module dwpose because ImportError: no cv2\n\n"
            "WanVideoWrapper WARNING: Qwen nodes not available due to error in importing them: gone\n",
            Startup(
                left_out=[
                    "Failed to import module dwpose because ImportError: no cv2",
                    "WanVideoWrapper WARNING: Qwen nodes not available due to error in importing them: gone",
                ]
            ),
        ),
        (
            "[ERROR] An error occurred while retrieving information for the 'Cut' node.\nsomething else\nTraceback\n",
            Startup(types={"Cut": "its log says no more"}),
        ),
    ],
)
def test_parse_log(text: str, expected: Startup) -> None:
    assert parse_log(text) == expected


@pytest.mark.parametrize(
    ("promised", "known", "startup", "expected"),
    [
        ({}, set(), Startup(), []),
        ({"a": ["X"]}, {"X", "Y"}, Startup(), []),
        ({"a": []}, set(), Startup(failed={"a": "E: no"}), ["node pack a could not be imported: E: no"]),
        ({"a": []}, set(), Startup(failed={"other.py": "E: no"}), []),
        (
            {"a": ["X"]},
            {"Y"},
            Startup(),
            [
                "node pack a lacks node type X: the log gives no reason. The pack at this commit may not have it: "
                "compare its commit with what is promised"
            ],
        ),
        (
            {"a": ["X", "Y", "Z"]},
            {"Z"},
            Startup(types={"X": "E: 1", "Y": "E: 1"}),
            [
                "node pack a lacks node types X, Y: E: 1 (while ComfyUI asked for their inputs). "
                "Pack and ComfyUI may be of different times"
            ],
        ),
        (
            {"a": ["X"]},
            set(),
            Startup(left_out=["Failed to import module x because E"]),
            ["node pack a lacks node type X: the log says: Failed to import module x because E"],
        ),
        (
            {"a": list("ABCDEFG")},
            set(),
            Startup(left_out=["why"]),
            ["node pack a lacks node types A, B, C, D, E and 2 more: the log says: why"],
        ),
    ],
)
def test_problems(promised: dict[str, list[str]], known: set[str], startup: Startup, expected: list[str]) -> None:
    assert problems(promised, known, startup) == expected


@pytest.mark.parametrize("text", ["", "{", '{"id": "x"}'])
def test_a_release_without_packs_promises_nothing(tmp_path: Path, text: str) -> None:
    if text:
        (tmp_path / "release.json").write_text(text)
    assert recorded(tmp_path) == {}
    assert look_at_packs(tmp_path, ComfyUIClient("http://127.0.0.1:9"), "none.service").problems == []


def record(folder: Path, types: list[str]) -> Path:
    packs = {"ComfyUI-KJNodes": {"commit": "a" * 40, "node_types": types}}
    (folder / "release.json").write_text(json.dumps({"custom_nodes": packs}))
    return folder


def test_a_look_at_a_running_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_nodes, "read_log", lambda _: BROKEN_IMPORT)
    monkeypatch.setattr(ComfyUIClient, "object_info", lambda _: {"X": {}})
    look = look_at_packs(record(tmp_path, ["X"]), ComfyUIClient("http://127.0.0.1:9"), "comfyui.service")
    assert look.packs == {"ComfyUI-KJNodes": {"commit": "a" * 40, "seconds": 1.5}}
    assert look.problems == []
    look = look_at_packs(record(tmp_path, ["Y"]), ComfyUIClient("http://127.0.0.1:9"), "comfyui.service")
    assert look.problems[0].startswith("node pack ComfyUI-KJNodes lacks node type Y")


def test_a_comfyui_that_does_not_tell_its_types_is_a_problem(tmp_path: Path) -> None:
    look = look_at_packs(record(tmp_path, ["X"]), ComfyUIClient("http://127.0.0.1:9"), "comfyui.service")
    assert look.problems[0].startswith("the node types cannot be read: http://127.0.0.1:9 does not answer")


def test_the_log_is_the_one_of_the_last_start(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        called.append(command)
        return SimpleNamespace(stdout="abc\n" if command[0] == "systemctl" else "the log")

    monkeypatch.setattr(subprocess, "run", run)
    assert custom_nodes.read_log("comfyui@1.service") == "the log"
    assert called[0][2] == "comfyui@1.service"
    assert "_SYSTEMD_INVOCATION_ID=abc" in called[-1]


# -- what the controller makes of the lock

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOCK = {
    "variants": {"base": [], "wan": ["one", "two"]},
    "packs": {
        "one": {
            "repository": "https://github.com/o/one.git",
            "commit": COMMIT,
            "requirements": ["a.txt", "more/b.txt"],
            "packages": ["onnx"],
            "without": ["fvcore"],
            "folders": {"ckpts": "models", "cache": "cache"},
            "node_types": ["Z", "A"],
        },
        "two": {"repository": "https://github.com/o/two.git", "commit": COMMIT},
    },
}
MINE = {"name": "mine", "repository": "https://example.com/mine.git", "commit": COMMIT}


@pytest.mark.parametrize(
    ("variant", "extra", "names"),
    [
        ("base", [], []),
        ("wan", [], ["one", "two"]),
        ("base", [MINE], ["mine"]),
        ("wan", [MINE], ["one", "two", "mine"]),
    ],
)
def test_packs_of_a_variant(variant: str, extra: list[dict[str, Any]], names: list[str]) -> None:
    assert [pack["name"] for pack in packs(LOCK, variant, extra)] == names


def test_what_a_pack_means_to_others() -> None:
    mirrors = [{"prefix": "https://github.com/", "replacement": "file:///srv/mirror/"}]
    one, two = packs(LOCK, "wan", mirrors=mirrors, folder="/c")
    assert one == {
        "name": "one",
        "origin": "file:///srv/mirror/o/one.git",
        "label": "one 0123456789ab",
        "release": {"commit": COMMIT, "node_types": ["A", "Z"]},
        "checkout": {
            "name": "one",
            "repository": "file:///srv/mirror/o/one.git",
            "commit": COMMIT,
            "dest": "/c/one",
            "submodules": True,
        },
        "accepted": [],
        "folders": [
            {"link": "/c/one/cache", "kind": "cache", "pack": "one", "cache": "one/cache"},
            {"link": "/c/one/ckpts", "kind": "models", "pack": "one", "cache": "one/ckpts"},
        ],
        "sources": [
            {"name": "one", "file": "/c/one/a.txt", "requirements": ["onnx"], "leave_out": ["fvcore"]},
            {"name": "one-2", "file": "/c/one/more/b.txt", "requirements": [], "leave_out": ["fvcore"]},
        ],
    }
    assert two["sources"] == []


def test_a_pack_may_name_its_packages_alone() -> None:
    (pack,) = packs(LOCK, "base", [{**MINE, "packages": ["numpy"]}])
    assert pack["sources"] == [{"name": "mine", "requirements": ["numpy"], "leave_out": []}]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, ""),
        ({"requirements": ["requirements.txt", "more/x.txt"]}, ""),
        ({"name": "../mine"}, "the name '../mine'"),
        ({"name": ""}, "the name ''"),
        ({"name": "one"}, "one, which the variant has already"),
        ({"commit": "main"}, "mine at commit 'main'"),
        ({"commit": COMMIT[:12]}, "mine at commit"),
        ({"repository": "mine.git"}, "mine from 'mine.git', which is no address"),
        ({"repository": "https://me:hunter2@example.com/x"}, "mine from an address with a password (not shown)"),
        ({"folders": {"ckpts": "/srv"}}, "mine with a folder of the kind '/srv'"),
        ({"requirements": ["/etc/passwd"]}, "mine with the requirements '/etc/passwd'"),
        ({"requirements": ["../requirements.txt"]}, "mine with the requirements '../requirements.txt'"),
    ],
)
def test_an_operator_s_pack(change: dict[str, Any], found: str) -> None:
    wrong = wrong_entry({**MINE, **change}, ["one"])
    assert wrong.startswith(found)
    assert bool(wrong) == bool(found)
    assert "hunter2" not in wrong
    if found:
        with pytest.raises(PackError, match="custom_nodes_extra holds"):
            packs(LOCK, "wan", [{**MINE, **change}])


def test_a_variant_that_is_not_there() -> None:
    with pytest.raises(PackError, match="there is no variant 'full'; there are: base, wan"):
        packs(LOCK, "full")


@pytest.mark.parametrize(
    ("header", "wanted", "expected"),
    [
        ("", [], ""),
        ("", ["one 1"], "made without one 1"),
        ("# Node packs: one 1, two 2\n", ["two 2", "one 1"], ""),
        ("# Node packs: one 1, two 2\n", ["one 1"], "made with two 2"),
        ("# Node packs: one 1\n", ["one 9", "two 2"], "made without one 9, two 2; made with one 1"),
    ],
)
def test_lock_problem(header: str, wanted: list[str], expected: str) -> None:
    assert lock_problem(f"# Made by\n{header}numpy==1\n", wanted) == expected
