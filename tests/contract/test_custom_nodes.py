"""The lock of the node packs agrees with all that stands beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.custom_nodes import (
    lock_problem,
    packs,
    untried,
    wrong_entry,
)
from ansible_collections.wanmetal.comfyui.tests.contract import house

LOCKS = house.ROOT / "files/locks"
LOCK: dict[str, Any] = house.read(LOCKS / "custom_nodes.yml")
SCHEMAS: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in (LOCKS / "schemas").glob("*.json")}
GATE: dict[str, Any] = house.read(LOCKS / "gate.yml")["packs"]
PYTHON_LOCKS = [path for variant in LOCK["variants"] for path in sorted((LOCKS / "python").glob(f"{variant}-*.txt"))]
PACKS = list(LOCK["packs"])


@pytest.mark.parametrize("path", PYTHON_LOCKS, ids=lambda path: path.name)
def test_python_packages_were_locked_with_these_packs(path: Path) -> None:
    variant = path.name.partition("-")[0]
    assert lock_problem(path.read_text(), [pack["label"] for pack in packs(LOCK, variant)]) == ""


def test_variants_are_those_that_the_setting_offers() -> None:
    options = house.role_file("wanmetal", "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert options["wanmetal_variant"]["choices"] == list(LOCK["variants"])
    assert {name for names in LOCK["variants"].values() for name in names} == set(PACKS)


@pytest.mark.parametrize("name", PACKS)
def test_a_pack_has_all_it_needs(name: str) -> None:
    pack = LOCK["packs"][name]
    options = house.role_file("custom_nodes", "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    known = options["custom_nodes_extra"]["options"].keys()
    assert pack.keys() | {"name"} <= known
    assert wrong_entry({"name": name, **pack}) == ""
    assert pack["licence"]
    assert pack["node_types"] == sorted(pack["node_types"], key=str.lower)
    assert set(pack.get("models", [])) <= house.read(LOCKS / "models.yml")["sets"].keys()


@pytest.mark.parametrize("name", PACKS)
def test_the_gate_let_it_pass(name: str) -> None:
    core = house.read(LOCKS / "upstream.yml")["comfyui"]["commit"]
    assert untried([pack for pack in packs(LOCK, "wan") if pack["name"] == name], {"packs": GATE}, core) == []
    assert (GATE[name]["verdict"], GATE[name]["reasons"]) == ("passes", [])


def test_the_gate_s_report_is_of_the_variant_s_packs() -> None:
    assert set(GATE) == set(PACKS)


@pytest.mark.parametrize("name", PACKS)
def test_schemas_are_of_the_pinned_commit(name: str) -> None:
    assert SCHEMAS[name]["commit"] == LOCK["packs"][name]["commit"]
    assert set(LOCK["packs"][name]["node_types"]) <= SCHEMAS[name]["types"].keys()


def test_what_the_workflows_use_is_promised() -> None:
    promised = {name for pack in LOCK["packs"].values() for name in pack["node_types"]}
    of_packs = {node for name in PACKS for node in SCHEMAS[name]["types"]}
    used = {node["class_type"] for name in workflows.index() for node in workflows.load_api(name).values()}
    assert used & of_packs, "the workflows use no node of any pack"
    assert used & of_packs - promised == set()


# Of comfyui_controlnet_aux; the others take files that they would fetch.
WITHOUT_WEIGHTS = {"LineartStandardPreprocessor"}


def test_what_preprocessors_of_the_workflows_would_fetch_is_in_the_catalogue() -> None:
    """Those that are bypassed as a workflow comes are counted, too."""
    files = {entry["name"] for entry in house.read(LOCKS / "models.yml")["files"].values()}
    used = [
        node
        for path in (house.ROOT / "files/workflows/ui").glob("*.json")
        for node in json.loads(path.read_text())["nodes"]
        if node["type"] in SCHEMAS["comfyui_controlnet_aux"]["types"] and node["type"] not in WITHOUT_WEIGHTS
    ]
    assert {node["type"] for node in used} == {"DWPreprocessor", "DepthAnythingV2Preprocessor"}
    for node in used:
        weights = [value for value in node["widgets_values"] if str(value).endswith((".pt", ".pth", ".onnx"))]
        assert weights, node["type"]
        assert set(weights) <= files


@pytest.mark.parametrize("path", PYTHON_LOCKS, ids=lambda path: path.name)
def test_one_opencv_and_one_onnx_runtime(path: Path) -> None:
    names = [line.partition("==")[0] for line in path.read_text().splitlines() if "==" in line and line[0].isalpha()]
    assert len([name for name in names if name.startswith("opencv")]) <= 1
    assert len([name for name in names if name.startswith("onnxruntime")]) <= 1
