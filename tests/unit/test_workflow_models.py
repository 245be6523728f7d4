"""A workflow brings the models that it names."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.filter.filters import FilterModule
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks

model_plan = FilterModule().filters()["model_plan"]
CATALOGUE = locks.load("models")
TEMPLATES = locks.load("templates")
MINE = {
    "name": "mine.safetensors",
    "url": "https://models.example.com/mine.safetensors?download=true",
    "directory": "loras",
    "hash": "ab" * 32,
    "hash_type": "SHA256",
}


def node(id_: int, kind: str, *values: object, mode: int = 0, models: object = None) -> dict[str, Any]:
    properties = {} if models is None else {"models": models}
    return {
        "id": id_,
        "type": kind,
        "mode": mode,
        "widgets_values": list(values),
        "properties": properties,
        "inputs": [],
        "outputs": [],
    }


def graph(*nodes: dict[str, Any], **more: Any) -> str:
    return json.dumps({"nodes": list(nodes), "links": [], "version": 0.4, **more})


def planned(text: str, **settings: Any) -> dict[str, Any]:
    plan: dict[str, Any] = model_plan(CATALOGUE, workflows={"mine.json": text}, **settings)
    return plan


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_brings_what_it_names(name: str) -> None:
    plan = model_plan(CATALOGUE, templates=TEMPLATES, template_names=[name])
    got = {f"{entry['folder']}/{entry['name']}" for entry in plan["files"]}
    lacking = [model for model in TEMPLATES[name]["models"] if model not in got]
    assert bool(plan["notes"]) == bool(lacking)
    assert all(model in plan["notes"][0] for model in lacking)
    assert plan["sets"] == [{"set": name, "ids": [entry["id"] for entry in plan["files"]]}]


def test_a_file_brings_models_of_the_catalogue_and_of_its_own_addresses() -> None:
    plan = planned(
        graph(
            node(1, "UNETLoader", "wan2.1_t2v_1.3B_fp16.safetensors", "default"),
            node(2, "LoraLoaderModelOnly", "mine.safetensors", 1.0, models=[MINE]),
            node(3, "VAELoader", "nobody_knows.safetensors"),
        )
    )
    by_name = {entry["name"]: entry for entry in plan["files"]}
    assert set(by_name) == {"wan2.1_t2v_1.3B_fp16.safetensors", "mine.safetensors"}
    assert by_name["mine.safetensors"] == {
        "id": "loras/mine.safetensors",
        "name": "mine.safetensors",
        "folder": "loras",
        "urls": [MINE["url"]],
        "sha256": MINE["hash"],
    }
    (note,) = plan["notes"]
    assert note.startswith("mine.json needs nobody_knows.safetensors, ")
    assert "wan_models_files" in note


def test_the_catalogue_goes_before_an_address_in_the_file() -> None:
    named = {**MINE, "name": "wan_2.1_vae.safetensors", "directory": "vae"}
    plan = planned(graph(node(1, "VAELoader", "wan_2.1_vae.safetensors", models=[named])))
    assert [entry["id"] for entry in plan["files"]] == ["wan-2-1-vae"]


def test_a_file_of_the_operator_s_own_goes_before_an_address_in_the_file() -> None:
    own = {"name": "mine.safetensors", "folder": "loras", "url": "https://own.example.com/mine"}
    plan = planned(graph(node(1, "LoraLoaderModelOnly", "mine.safetensors", 1.0, models=[MINE])), files=[own])
    assert [entry["urls"] for entry in plan["files"]] == [["https://own.example.com/mine"]]


@pytest.mark.parametrize("mode", [2, 4])
def test_what_does_not_run_brings_nothing(mode: int) -> None:
    assert (
        planned(graph(node(1, "LoraLoaderModelOnly", "mine.safetensors", 1.0, mode=mode, models=[MINE])))["files"] == []
    )


def test_a_name_in_a_folder_keeps_it() -> None:
    plan = planned(graph(node(1, "LoraLoaderModelOnly", "wan/mine.safetensors", 1.0, models=[MINE])))
    assert [(entry["folder"], entry["name"]) for entry in plan["files"]] == [("loras/wan", "mine.safetensors")]


def test_an_address_passes_the_mirrors() -> None:
    mirrors = [{"prefix": "https://models.example.com", "replacement": "http://cache:8080"}]
    plan = planned(graph(node(1, "LoraLoaderModelOnly", "mine.safetensors", 1.0, models=[MINE])), mirrors=mirrors)
    assert plan["files"][0]["urls"] == ["http://cache:8080/mine.safetensors?download=true"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "file:///etc/shadow"}, "the address of mine.safetensors must begin with https://"),
        ({"url": "ftp://a.example.com/x"}, "must begin with https://"),
        ({"url": "https://a.example.com/x?token=s3cret"}, "holds a credential"),
        ({"url": "https://me:s3cret@a.example.com/x"}, "holds a user name or a password"),
        ({"directory": "../etc"}, "folder must be a path below the models folder"),
        ({"directory": "/etc"}, "folder must be a path below the models folder"),
        ({"hash": "abc"}, "sha256 must have 64 hexadecimal digits"),
    ],
)
def test_what_is_unsafe_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(AnsibleFilterError, match=re.escape(says)) as caught:
        planned(graph(node(1, "LoraLoaderModelOnly", "mine.safetensors", 1.0, models=[{**MINE, **change}])))
    assert "mine.json" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"nodes": 7}', '{"nodes": [7]}'])
def test_a_file_that_is_no_workflow_is_named(text: str) -> None:
    with pytest.raises(AnsibleFilterError, match=r"mine\.json is no workflow that can be read"):
        planned(text)
