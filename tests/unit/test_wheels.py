from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import wheels


def need(*architectures: str, base: str = "aaa", nvcc: str = "12.8", cores: int = 8) -> dict[str, Any]:
    return {"base": base, "version": "2.2.0", "architectures": list(architectures), "nvcc": nvcc, "cores": cores}


def cached(key: str, *architectures: str, base: str = "aaa") -> dict[str, Any]:
    return {"key": key, "base": base, "architectures": list(architectures), "wheel": f"/cache/{key}/x.whl"}


@pytest.mark.parametrize(
    ("needs", "cache", "further", "expected"),
    [
        pytest.param({}, [], [], {}, id="nobody needs anything"),
        pytest.param({"a": {}}, [], [], {}, id="a host that needs nothing is left out"),
        pytest.param({"a": need("8.9")}, [], [], {"a": ("a", ["8.9"], "")}, id="one host builds its own"),
        pytest.param(
            {"a": need("8.9"), "b": need("8.9")},
            [],
            [],
            {"a": ("a", ["8.9"], ""), "b": ("a", ["8.9"], "")},
            id="one of two builds",
        ),
        pytest.param(
            {"a": need("8.9"), "b": need("12.0", "8.9"), "c": need("9.0", base="bbb")},
            [],
            [],
            {"a": ("a", ["8.9", "12.0"], ""), "b": ("a", ["8.9", "12.0"], ""), "c": ("c", ["9.0"], "")},
            id="one wheel for all GPUs, and one for each lane",
        ),
        pytest.param(
            {"a": need("8.9"), "b": need("8.9", cores=64)},
            [],
            [],
            {"a": ("b", ["8.9"], ""), "b": ("b", ["8.9"], "")},
            id="the host with the most cores builds",
        ),
        pytest.param(
            {"a": need("8.9", nvcc="", cores=64), "b": need("8.9")},
            [],
            [],
            {"a": ("b", ["8.9"], ""), "b": ("b", ["8.9"], "")},
            id="a host with a compiler builds",
        ),
        pytest.param(
            {"a": need("8.9"), "b": need("9.0")},
            [cached("k", "8.9")],
            [],
            {"a": ("", ["8.9"], "/cache/k/x.whl"), "b": ("b", ["9.0"], "")},
            id="the cache has one of them",
        ),
        pytest.param(
            {"a": need("8.9")},
            [cached("big", "8.0", "8.9"), cached("k", "8.9"), cached("other", "8.9", base="bbb")],
            [],
            {"a": ("", ["8.9"], "/cache/k/x.whl")},
            id="the smallest that fits",
        ),
        pytest.param(
            {"a": need("8.9")},
            [cached("k", "8.9")],
            ["12.0"],
            {"a": ("a", ["8.9", "12.0"], "")},
            id="a GPU that no host has yet",
        ),
    ],
)
def test_plan(
    needs: dict[str, Any],
    cache: list[dict[str, Any]],
    further: list[str],
    expected: dict[str, tuple[str, list[str], str]],
) -> None:
    planned = wheels.plan(needs, cache, further)
    assert {host: (one["builder"], one["architectures"], one["wheel"]) for host, one in planned.items()} == expected
    for host, one in planned.items():
        if one["builder"]:
            assert one["key"] == wheels.wheel_key("2.2.0", needs[host]["base"], one["architectures"])


def test_the_key_is_of_all_that_a_wheel_is_made_from() -> None:
    key = wheels.wheel_key("2.2.0", "aaa", ["9.0", "8.9"])
    assert key == wheels.wheel_key("2.2.0", "aaa", ["8.9", "9.0"])
    assert key.startswith("2.2.0-")
    others = {
        wheels.wheel_key("2.2.0", "bbb", ["8.9", "9.0"]),
        wheels.wheel_key("2.2.0", "aaa", ["8.9"]),
        wheels.wheel_key("2.2.1", "aaa", ["8.9", "9.0"]),
    }
    assert len(others | {key}) == 4


def test_the_cache_is_read(tmp_path: Path) -> None:
    for name, record, wheel in (
        ("good", {"key": "good", "base": "aaa", "architectures": ["8.9"], "sha256": "0" * 64}, True),
        ("no-wheel", {"key": "no-wheel", "base": "aaa", "architectures": ["8.9"], "sha256": "0" * 64}, False),
        ("no-hash", {"key": "no-hash", "base": "aaa", "architectures": ["8.9"]}, True),
        ("damaged", None, True),
    ):
        place = tmp_path / name
        place.mkdir()
        (place / "wheel.json").write_text(json.dumps(record) if record else "{")
        if wheel:
            (place / "sageattention-2.2.0.whl").touch()
    # A wheel whose record is not there yet is still being fetched.
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "sageattention-2.2.0.whl").touch()
    found = wheels.read_cache(tmp_path)
    assert [(one["key"], Path(one["wheel"]).name) for one in found] == [("good", "sageattention-2.2.0.whl")]
    assert wheels.read_cache(tmp_path / "not there") == []
