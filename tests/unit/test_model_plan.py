"""From settings to a list of model files, and to a plan that people can read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.filter.filters import FilterModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import plan
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.record import Record
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import parse_files
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import models

model_plan = FilterModule().filters()["model_plan"]
GB = 1_000_000_000


def file(name: str, size: int | None = GB, **more: Any) -> dict[str, Any]:
    return {
        "name": f"{name}.safetensors",
        "folder": "loras",
        "urls": [f"https://hub.example/{name}"],
        "bytes": size,
        "sha256": "ab" * 32,
        "task": "lora",
        **more,
    }


CATALOGUE: dict[str, Any] = {
    "sets": {
        "base": {
            "description": "",
            "files": ["vae"],
            "profiles": {"small": ["enc8"], "fp8": ["enc16"], "full": ["enc16"]},
        },
        "i2v": {"description": "", "needs": ["base"], "profiles": {"small": ["s"], "fp8": ["m"], "full": ["l"]}},
        "t2v": {"description": "", "needs": ["base"], "files": ["t"]},
        "big": {"description": "", "needs": ["base"], "profiles": {"small": [], "fp8": ["l"], "full": ["l"]}},
    },
    "files": {name: file(name) for name in ("vae", "enc8", "enc16", "s", "m", "t")}
    | {"l": file("l", None, about_bytes=9 * GB)},
}


def ids(planned: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in planned["files"]]


@pytest.mark.parametrize(
    ("wanted", "vram", "cpu", "profile"),
    [
        ("auto", [8192], False, "small"),
        ("auto", [16380], False, "small"),
        ("auto", [22564], False, "fp8"),
        ("auto", [24564], False, "fp8"),
        ("auto", [32607], False, "fp8"),
        ("auto", [40960], False, "full"),
        ("auto", [81559, 24564], False, "fp8"),
        ("auto", [20480, 5120], False, "small"),  # slices of one card
        ("auto", [], True, "small"),
        ("auto", [], False, "fp8"),
        ("full", [8192], False, "full"),
    ],
)
def test_the_profile_fits_the_smallest_card(wanted: str, vram: list[int], cpu: bool, profile: str) -> None:
    assert models.choose_profile(wanted, vram, cpu=cpu)[0] == profile


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"sets": ["i2v"], "profile": "fp8"}, ["m", "vae", "enc16"]),
        ({"sets": ["i2v", "t2v"], "profile": "small"}, ["s", "vae", "enc8", "t"]),
        ({"sets": ["i2v", "i2v"], "profile": "full"}, ["l", "vae", "enc16"]),
        ({"files": ["t"]}, ["t"]),
        ({"sets": ["t2v"], "files": ["t"], "profile": "fp8"}, ["t", "vae", "enc16"]),
        ({"checkpoints": "12, 34,", "loras": [12, 56]}, ["civitai-12", "civitai-34", "civitai-56"]),
    ],
)
def test_each_file_is_there_once(settings: dict[str, Any], expected: list[str]) -> None:
    assert ids(model_plan(CATALOGUE, **settings)) == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"name": "a.pt", "folder": "vae", "url": "https://a.example/x"},
            {"id": "vae/a.pt", "name": "a.pt", "folder": "vae", "urls": ["https://a.example/x"]},
        ),
        (
            {"repo": "me/mine", "path": "deep/a.pt", "folder": "vae", "sha256": "cd" * 32},
            {
                "id": "vae/a.pt",
                "name": "a.pt",
                "folder": "vae",
                "sha256": "cd" * 32,
                "urls": ["https://huggingface.co/me/mine/resolve/main/deep/a.pt"],
            },
        ),
        (
            {"repo": "me/mine", "path": "a.pt", "revision": "abc", "name": "b.pt", "folder": "vae"},
            {
                "id": "vae/b.pt",
                "name": "b.pt",
                "folder": "vae",
                "urls": ["https://huggingface.co/me/mine/resolve/abc/a.pt"],
            },
        ),
        (
            {"repo": "me/mine", "path": "deep/a b?c#d%.pt", "revision": "refs/pr/1", "folder": "vae", "bytes": 5},
            {
                "id": "vae/a b?c#d%.pt",
                "name": "a b?c#d%.pt",
                "folder": "vae",
                "bytes": 5,
                "urls": ["https://huggingface.co/me/mine/resolve/refs%2Fpr%2F1/deep/a%20b%3Fc%23d%25.pt"],
            },
        ),
        (
            {"repo": "me/gr\u00f6\u00dfe", "path": "/\u00fc.pt", "revision": 1234567, "folder": "vae"},
            {
                "id": "vae/\u00fc.pt",
                "name": "\u00fc.pt",
                "folder": "vae",
                "urls": ["https://huggingface.co/me/gr%C3%B6%C3%9Fe/resolve/1234567/%C3%BC.pt"],
            },
        ),
        ({"civitai": 12, "file_id": 3}, {"id": "civitai-12-3", "civitai": 12, "file_id": 3, "urls": []}),
    ],
)
def test_own_files(entry: dict[str, Any], expected: dict[str, Any]) -> None:
    assert model_plan(CATALOGUE, files=[entry])["files"] == [expected]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sets": ["i3v"]}, "wan_models_sets: there is no set 'i3v'; there are base, big, i2v, t2v"),
        ({"sets": "i2v"}, "wan_models_sets must be a list of names"),
        ({"profile": "tiny"}, "wan_models_profile must be auto, small, fp8, full, found 'tiny'"),
        ({"sets": ["T2V"]}, "there are base, big, i2v, t2v; did you mean t2v?"),
        ({"files": ["vaee"]}, "wan_models_files[0]: the catalogue has no file 'vaee'; did you mean vae?"),
        ({"files": ["https://a.example/x?token=secret"]}, "an address belongs in a mapping"),
        ({"files": [{"repo": "https://huggingface.co/a/b", "path": "x", "folder": "vae"}]}, "repo must be the owner"),
        ({"files": [{"name": "a", "folder": "vae", "urls": "https://a/x?token=secret"}]}, "holds a credential"),
        (
            {"files": [{"name": "a", "folder": "vae", "url": f"https://a/{n}"} for n in range(2)]},
            "two different files are both vae/a",
        ),
        (
            {"files": [{"id": "t", "name": "mine.safetensors", "folder": "vae", "url": "https://a/x"}, "t"]},
            "two different files are both t",
        ),
        ({"files": ["nope"]}, "wan_models_files[0]: the catalogue has no file 'nope'"),
        ({"files": [7]}, "wan_models_files[0] must be the id of a catalogue file, or a mapping"),
        ({"files": [{"name": "a", "folder": "vae", "ulr": "https://a/x"}]}, "wan_models_files[0]: unknown ulr"),
        ({"files": [{"name": "a", "folder": "vae"}]}, "wan_models_files[0]: file vae/a: urls is missing"),
        (
            {"files": [{"name": 7, "folder": "vae", "url": "https://a/x"}]},
            "wan_models_files[0]: file vae/7: name must",
        ),
        (
            {"files": [{"name": "a", "folder": "vae", "urls": 7}]},
            "wan_models_files[0]: file vae/a: urls must begin",
        ),
        ({"files": [{1: "a"}]}, "wan_models_files[0]: unknown 1"),
        (
            {"files": [{"repo": "a/b", "path": "../../c", "folder": "vae"}]},
            "wan_models_files[0]: repo and path must lead",
        ),
        ({"loras": "²"}, "wan_models_loras must list CivitAI version ids, which are numbers; found '²'"),
        ({"files": [{"repo": "a/b", "folder": "vae"}]}, "wan_models_files[0]: repo and path belong together"),
        ({"files": [{"name": "../a", "folder": "vae", "url": "https://a/x"}]}, "name must be a plain file name"),
        ({"loras": "12;13"}, "wan_models_loras must list CivitAI version ids, which are numbers; found '12;13'"),
        (
            {"files": ["t", {"name": "t.safetensors", "folder": "loras", "url": "https://a.example/t"}]},
            "files t and loras/t.safetensors both claim loras/t.safetensors",
        ),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(AnsibleFilterError, match=re.escape(says)) as caught:
        model_plan(CATALOGUE, **settings)
    assert "secret" not in str(caught.value)


def test_a_set_without_files_for_a_profile_is_said() -> None:
    planned = model_plan(CATALOGUE, sets=["big", "t2v"], profile="small")
    assert planned["notes"] == ["the set big holds nothing for the profile small"]
    assert "l" not in ids(planned)


def test_every_address_passes_the_mirrors() -> None:
    mirrors = [
        {"prefix": "https://hub.example", "replacement": "http://cache:8080/hub"},
        {"prefix": "https://huggingface.co", "replacement": "file:///srv/hf"},
    ]
    planned = model_plan(
        CATALOGUE, sets=["i2v", "t2v"], files=[{"repo": "me/mine", "path": "a.pt", "folder": "vae"}], mirrors=mirrors
    )
    urls = [url for entry in planned["files"] for url in entry["urls"]]
    assert urls
    assert [url for url in urls if not url.startswith(("http://cache:8080/hub/", "file:///srv/hf/"))] == []


def on_host(tmp_path: Path, reserve: int = 0, rate: int = 0, **settings: Any) -> dict[str, Any]:
    planned = model_plan(CATALOGUE, **settings)
    record = Record(tmp_path)
    found = [plan.look_at(item, tmp_path, record, "models") for item in parse_files(planned["files"])]
    state = {**plan.summary(found, reserve, None), "unwanted": []}
    seen: dict[str, Any] = model_plan(planned, state, models_dir=str(tmp_path), rate=rate)
    return seen


def test_the_plan_of_a_host_counts_shared_files_once(tmp_path: Path) -> None:
    seen = on_host(tmp_path, sets=["i2v", "t2v"], profile="fp8")
    assert (seen["bytes_total"], seen["bytes_missing"], seen["seconds"]) == (4 * GB, 4 * GB, 40)
    assert [(row["set"], row["files"], row["bytes"], row["shared"], row["missing"]) for row in seen["sets"]] == [
        ("i2v", 3, 3 * GB, 0, 3 * GB),
        ("t2v", 3, 3 * GB, 2 * GB, GB),
    ]
    assert seen["part"]["fetch"] == [{"what": "4 model files of i2v, t2v", "url": "", "bytes": 4 * GB}]
    assert seen["part"]["disk"][0]["bytes"] == 4 * GB
    assert seen["part"]["urls"] == ["https://hub.example/m"]


def test_the_plan_of_a_host_is_written_for_people(tmp_path: Path) -> None:
    lines = on_host(tmp_path, sets=["i2v", "t2v"], profile="fp8", rate=50_000_000)["lines"]
    assert lines[0] == "profile fp8 (as set)"
    assert lines[1].split() == ["set", "files", "size", "shared", "to", "fetch"]
    assert lines[4].startswith("in all")
    assert lines[5] == "about 80 s at 50.0 MB/s (as measured on this host)"
    assert "needed" in lines[6]
    assumed = on_host(tmp_path, sets=["i2v"], profile="full")["lines"]
    assert any("(assumed; nothing was measured here yet)" in line for line in assumed)


def test_a_disk_that_is_too_small_is_seen(tmp_path: Path) -> None:
    seen = on_host(tmp_path, reserve=1 << 60, sets=["t2v"])
    assert not seen["enough"]
    assert any("too little" in line for line in seen["lines"])


def test_nothing_asked_for_is_nothing_to_do(tmp_path: Path) -> None:
    seen = on_host(tmp_path)
    assert seen["lines"] == ["no model files are asked for"]
    assert (seen["part"]["fetch"], seen["part"]["urls"]) == ([], [])
