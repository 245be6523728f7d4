from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks, wheels


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


LOCK = "comfy-aimdo==0.4.13 \\\ncomfy-kitchen==0.2.31 \\\n    --hash=sha256:0\n"
ALL = ["source-2.2", "triton-1.0.6", "comfy-kitchen"]
ADDRESS = "https://example.org/w/sageattention-2.2.0%2Bown-cp311-cp311-linux_x86_64.whl"


def methods(names: list[str], lane: str = "cu130", lock: str = LOCK, **own: str) -> dict[str, dict[str, Any]]:
    found = wheels.methods(names, locks.load("upstream"), lane, "3.11", lock, **own)
    return {one["name"]: one for one in found}


def test_methods_keep_the_order_that_is_asked_for() -> None:
    assert list(methods(ALL)) == ALL
    assert list(methods(ALL[::-1])) == ALL[::-1]
    assert methods([]) == {}


def test_a_release_without_comfy_kitchen_has_no_attention_of_its() -> None:
    assert list(methods(ALL, lock="torch==2.11.0\n")) == ALL[:2]
    kitchen = methods(ALL)["comfy-kitchen"]
    assert (kitchen["version"], kitchen["attention"], kitchen["architectures"]) == ("0.2.31", "kitchen", [])


def test_kernels_need_a_compiler_that_knows_the_card() -> None:
    assert "12.1" in methods(ALL)["source-2.2"]["architectures"]
    assert "12.1" not in methods(ALL, lane="cu128")["source-2.2"]["architectures"]


def test_an_own_wheel_takes_the_place_of_a_build() -> None:
    found = methods(ALL, url=ADDRESS, sha256="0" * 64)
    assert list(found) == ["wheel", "triton-1.0.6", "comfy-kitchen"]
    assert (found["wheel"]["version"], found["wheel"]["architectures"]) == ("2.2.0+own", [])
    assert list(methods([], url=ADDRESS, sha256="0" * 64)) == ["wheel"]
    assert found["wheel"]["base"] != methods(ALL, url=ADDRESS, sha256="1" * 64)["wheel"]["base"]


def test_what_a_method_is_made_from_names_all_that_it_depends_on() -> None:
    here = methods(ALL)
    assert len({one["base"] for one in here.values()}) == 3
    newer = methods(ALL, lock=LOCK.replace("0.2.31", "0.2.40"))
    assert [name for name in ALL if here[name]["base"] != newer[name]["base"]] == ["comfy-kitchen"]
    assert all(here[name]["base"] != one["base"] for name, one in methods(ALL, lane="cu128").items())


@pytest.mark.parametrize(
    ("url", "version"),
    [
        (ADDRESS, "2.2.0+own"),
        ("file:///srv/sageattention-1.0.6-py3-none-any.whl", "1.0.6"),
        ("https://example.org/sageattention-2.2.0-cp311-cp311-linux_x86_64.whl?download=1#x", "2.2.0"),
        ("https://example.org/sageattn3-1.0.0-cp311-cp311-linux_x86_64.whl", ""),
        ("https://example.org/sageattention-2.2.0.tar.gz", ""),
        ("https://example.org/sageattention-2.2.0-x.whl/", ""),
        ("", ""),
    ],
)
def test_version_of_an_own_wheel(url: str, version: str) -> None:
    assert wheels.wheel_version(url) == version
