from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release import switch as release_switch
from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels import sageattention

SOURCE = {
    "name": "source-2.2",
    "version": "2.2.0",
    "base": "aaa",
    "architectures": ["8.0", "8.9", "9.0"],
    "attention": "sage",
}
TRITON = {
    "name": "triton-1.0.6",
    "version": "1.0.6",
    "base": "bbb",
    "architectures": ["8.0", "8.9", "9.0"],
    "attention": "sage",
}
KITCHEN = {"name": "comfy-kitchen", "version": "0.2.31", "base": "ccc", "architectures": [], "attention": "kitchen"}
HERE = {"gpus": ["RTX 4090"], "architectures": ["8.9"], "driver": "580.65.06"}
WHEEL = {"base": "aaa", "architectures": ["8.9"], "version": "2.2.0"}
RESULT = {"passed": True, "gpus": ["RTX 4090"], "driver": "580.65.06", "speedup": 1.7, "worst_error": 0.04}
FAILURE = {"base": "aaa", "architectures": ["8.9"], "reason": "no compiler", "nvcc": "", "log": "/x/build.log"}


def folder(key: str = "k", **written: Any) -> dict[str, Any]:
    return {"key": key, "path": f"/x/{key}", "wheel": {}, "result": {}, "failure": {}, **written}


@pytest.mark.parametrize(
    ("folders", "nvcc", "retry", "state"),
    [
        ([], "", False, "missing"),
        ([folder(wheel=WHEEL)], "", False, "ready"),
        ([folder(wheel=WHEEL, result=RESULT)], "", False, "passed"),
        ([folder(wheel={**WHEEL, "architectures": ["8.0", "8.9"]}, result=RESULT)], "", False, "passed"),
        ([folder(wheel={**WHEEL, "base": "other"}, result=RESULT)], "", False, "missing"),
        ([folder(wheel={**WHEEL, "architectures": ["9.0"]}, result=RESULT)], "", False, "missing"),
        ([folder(wheel=WHEEL, result={**RESULT, "driver": "570.1"})], "", False, "ready"),
        ([folder(wheel=WHEEL, result={**RESULT, "gpus": ["L40S"]})], "", False, "ready"),
        ([folder(wheel=WHEEL, result={**RESULT, "passed": False})], "", False, "failed"),
        ([folder(wheel=WHEEL, result={**RESULT, "passed": False})], "", True, "ready"),
        ([folder(wheel=WHEEL, result=RESULT)], "", True, "passed"),
        ([folder(wheel=WHEEL, result={**RESULT, "passed": False, "transient": True})], "", False, "ready"),
        ([folder(failure=FAILURE)], "", False, "failed"),
        ([folder(failure=FAILURE)], "", True, "missing"),
        ([folder(failure=FAILURE)], "12.8", False, "missing"),
        ([folder(failure={**FAILURE, "transient": True})], "", False, "missing"),
        # A build that failed once does not count where another one is there.
        ([folder("a", failure=FAILURE), folder("b", wheel=WHEEL, result=RESULT)], "", False, "passed"),
        ([folder("a", wheel=WHEEL), folder("b", wheel=WHEEL, result=RESULT)], "", False, "passed"),
    ],
)
def test_look(folders: list[dict[str, Any]], nvcc: str, retry: bool, state: str) -> None:
    told = sageattention.look(SOURCE, folders, HERE, nvcc, retry)
    assert told["state"] == state


def test_what_comes_with_comfyui_needs_no_folder_in_the_path_and_no_list_of_gpus() -> None:
    wheel = {"base": "ccc", "architectures": ["10.0"], "version": "0.2.31"}
    here = {**HERE, "architectures": ["10.0"]}
    told = sageattention.look(KITCHEN, [folder(wheel=wheel, result=RESULT)], here, "", False)
    assert (told["state"], told["path"], told["attention"], told["speedup"]) == ("passed", "", "kitchen", 1.7)


def test_what_failed_is_tried_once_again_where_that_is_asked_for(tmp_path: Path) -> None:
    for key, base in (("a", "aaa"), ("b", "bbb")):
        (tmp_path / key).mkdir()
        (tmp_path / key / "failure.json").write_text(json.dumps({**FAILURE, "base": base}))
    tried: list[str] = []
    for expected in ("source-2.2", "triton-1.0.6", ""):
        told = sageattention.state(tmp_path, [SOURCE, TRITON], "/nowhere/nvcc", tried, True, found([gpu("8.9")]))
        assert told["next"].get("method", "") == expected
        tried.append(expected)
    assert told["settled"]


def test_a_gpu_without_kernels_is_named() -> None:
    told = sageattention.look(SOURCE, [], {**HERE, "architectures": ["7.5", "8.9"]}, "", False)
    assert told["state"] == "unsupported"
    assert told["reason"] == "it has no kernels for compute capability 7.5, only for 8.0, 8.9, 9.0"


@pytest.mark.parametrize(
    ("states", "leave_out", "active", "following", "settled"),
    [
        ([], [], "", "", True),
        ([2.0, "missing"], [], "source-2.2", "triton-1.0.6", False),
        (["missing", "missing"], [], "", "source-2.2", False),
        (["missing", "missing"], ["source-2.2"], "", "triton-1.0.6", False),
        (["missing", 1.1], [], "triton-1.0.6", "source-2.2", False),
        (["missing", 1.1], ["source-2.2"], "triton-1.0.6", "", False),
        (["failed", 1.1], [], "triton-1.0.6", "", True),
        (["failed", "ready"], [], "", "triton-1.0.6", False),
        (["unsupported", "failed"], [], "", "", True),
        # The fastest that is right, wherever it stands; the first among equals.
        ([1.97, 1.18, 1.24], [], "source-2.2", "", True),
        ([1.1, 1.2, 1.3], [], "comfy-kitchen", "", True),
        ([1.1, 1.3, 1.2], [], "triton-1.0.6", "", True),
        ([1.2, 1.2, 1.2], [], "source-2.2", "", True),
        (["failed", 1.2, 1.24], [], "comfy-kitchen", "", True),
        ([1.1, "failed", "unsupported"], [], "source-2.2", "", True),
    ],
)
def test_choose(states: list[float | str], leave_out: list[str], active: str, following: str, settled: bool) -> None:
    """A number is the speed of one that passed."""
    told = [
        {"method": name, **({"state": state} if isinstance(state, str) else {"state": "passed", "speedup": state})}
        for name, state in zip(("source-2.2", "triton-1.0.6", "comfy-kitchen"), states, strict=False)
    ]
    chosen = sageattention.choose(told, leave_out)
    assert chosen["active"].get("method", "") == active
    assert chosen["next"].get("method", "") == following
    assert chosen["settled"] is settled


def told(
    state: str, method: str = "source-2.2", reason: str = "", log: str = "", speedup: float = 1.7
) -> dict[str, Any]:
    attention = "kitchen" if method == "comfy-kitchen" else "sage"
    known = {"method": method, "version": "2.2.0", "attention": attention, "speedup": speedup}
    return {**known, "state": state, "reason": reason, "log": log}


@pytest.mark.parametrize(
    ("methods", "active", "idle", "text"),
    [
        ([], {}, "the host has no NVIDIA GPU", "torch's own; the host has no NVIDIA GPU"),
        ([], {}, "", "torch's own; no method is asked for"),
        (
            [told("failed", reason="NaN", log="/x/test.log")],
            {},
            "",
            "torch's own; source-2.2: NaN (log: /x/test.log)",
        ),
        ([told("missing")], {}, "", "torch's own; source-2.2: not there yet"),
        (
            [told("passed")],
            told("passed"),
            "",
            "SageAttention 2.2.0, 1.70 times as fast as torch's own",
        ),
        (
            [told("failed", reason="no compiler"), told("passed", "triton-1.0.6")],
            told("passed", "triton-1.0.6"),
            "",
            "SageAttention 2.2.0, 1.70 times as fast as torch's own; source-2.2: no compiler",
        ),
        (
            [told("passed", speedup=1.1), told("failed", "triton-1.0.6", "NaN"), told("passed", "comfy-kitchen")],
            told("passed", "comfy-kitchen"),
            "",
            "comfy-kitchen 2.2.0, 1.70 times as fast as torch's own; source-2.2: 1.10 times; triton-1.0.6: NaN",
        ),
    ],
)
def test_sentence(methods: list[dict[str, Any]], active: dict[str, Any], idle: str, text: str) -> None:
    assert sageattention.sentence(methods, active, idle) == text


def gpu(capability: str, index: int | None = 0, name: str = "RTX 4090") -> dict[str, Any]:
    return {"name": name, "compute_capability": capability, "index": index}


def found(gpus: list[dict[str, Any]], ready: bool = True, error: str = "") -> dict[str, Any]:
    return {"gpus": gpus, "driver": {"ready": ready, "error": error, "loaded": "580.65.06", "library": None}}


@pytest.mark.parametrize(
    ("host", "idle", "settled"),
    [
        (found([]), "the host has no NVIDIA GPU", True),
        # A driver may come later in the same run.
        (found([gpu("8.9", None)], ready=False), "the host has no NVIDIA driver yet", False),
        (found([gpu("8.9", None)], ready=False, error="mismatch"), "the driver does not work: mismatch", False),
        (found([gpu("8.9")]), "", False),
    ],
)
def test_state_of_a_host_without_wheels(tmp_path: Path, host: dict[str, Any], idle: str, settled: bool) -> None:
    told = sageattention.state(tmp_path, [SOURCE, TRITON], "/nowhere/nvcc", [], False, host)
    assert (told["idle"], told["settled"], told["active"]) == (idle, settled, {})
    assert told["nvcc"] == ""


def test_a_host_with_several_kinds_of_gpus_needs_kernels_for_all(tmp_path: Path) -> None:
    host = found([gpu("8.9"), gpu("10.0", 1, "B200"), gpu("8.9", 2)])
    told = sageattention.state(tmp_path, [SOURCE], "/nowhere/nvcc", [], False, host)
    assert told["architectures"] == ["8.9", "10.0"]
    assert told["gpus"] == ["B200", "RTX 4090"]
    assert "no kernels for compute capability 10.0" in told["told"]
    assert told["settled"]


def test_state_reads_what_runs_have_written(tmp_path: Path) -> None:
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n")
    compiler.chmod(0o755)
    place = tmp_path / "wheels" / "2.2.0-abc"
    place.mkdir(parents=True)
    (place / "wheel.json").write_text(json.dumps(WHEEL))
    (place / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "wheels" / "damaged").mkdir()
    (tmp_path / "wheels" / "damaged" / "wheel.json").write_text("{")
    told = sageattention.state(tmp_path / "wheels", [SOURCE, TRITON], str(compiler), [], False, found([gpu("8.9")]))
    assert told["nvcc"] == "12.8"
    assert told["active"]["path"] == f"{place}/site"
    assert told["next"]["method"] == "triton-1.0.6"
    assert told["active"]["speedup"] == 1.7


def test_what_no_release_uses_is_removed(tmp_path: Path) -> None:
    root, releases = tmp_path / "sageattention", tmp_path / "releases"
    for key, base in {"used": "old", "unused": "old", "current": "aaa", "used-too": "older"}.items():
        (root / key).mkdir(parents=True)
        (root / key / "wheel.json").write_text(json.dumps({**WHEEL, "base": base}))
    (releases / "one").mkdir(parents=True)
    unit = f"Environment=PYTHONPATH={root}/used/site\n".encode()
    config = (release_switch.ConfigFile(Path("/etc/x"), unit, "root", "root", 0o644),)
    (releases / "one" / release_switch.SETTINGS).write_bytes(release_switch.pack(config, ()))
    (releases / "damaged").mkdir()
    (releases / "damaged" / release_switch.SETTINGS).write_text("{")
    assert sageattention.prune(root, releases, ["aaa"], check=True) == ["unused", "used-too"]
    assert sorted(path.name for path in root.iterdir()) == ["current", "unused", "used", "used-too"]
    assert sageattention.prune(root, releases, ["aaa"], check=False) == ["unused", "used-too"]
    assert sorted(path.name for path in root.iterdir()) == ["current", "used"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(["9.0", "8.9", "8.9"], ["8.9", "9.0"]), (["12.0", "8.0", "10.0"], ["8.0", "10.0", "12.0"]), ([], [])],
)
def test_architectures_are_sorted_as_numbers(given: list[str], expected: list[str]) -> None:
    assert sageattention.sorted_architectures(given) == expected
