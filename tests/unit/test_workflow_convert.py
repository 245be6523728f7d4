"""From the browser's format to the API's: as the browser does it, and where it can only be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError, to_api
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows

# What ComfyUI's own browser page exported, at the pinned commits, with KJNodes.
RECORDED = Path(__file__).parents[1] / "data/workflows"
SCHEMAS = workflow_schemas.recorded()


def untitled(api: dict[str, Any]) -> dict[str, Any]:
    """Titles that the file does not have are the browser's own, in its language."""
    return {id_: {key: node[key] for key in ("class_type", "inputs")} for id_, node in api.items()}


@pytest.mark.parametrize("file", sorted(RECORDED.glob("*.json")), ids=lambda file: file.stem)
def test_as_the_browser_exports(file: Path) -> None:
    recorded = json.loads(file.read_text())
    assert untitled(to_api(recorded["workflow"], SCHEMAS)) == untitled(recorded["api"])


@pytest.mark.parametrize("name", workflows.index())
def test_api_format_comes_back_as_it_is(name: str) -> None:
    api = workflows.load(name, "api")
    assert to_api(api, SCHEMAS) == api


def node(id_: int, kind: str, inputs: list[tuple[str, str, int | None]], **more: Any) -> dict[str, Any]:
    slots = [{"name": name, "type": type_, "link": link} for name, type_, link in inputs]
    outputs = [{"name": "IMAGE", "type": "IMAGE", "links": []}]
    return {"id": id_, "type": kind, "inputs": slots, "outputs": outputs, **more}


def saved(*nodes: dict[str, Any], links: list[list[Any]], **more: Any) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": links, **more}


SAVE = node(9, "SaveImage", [("images", "IMAGE", 1)], widgets_values=["out"])


@pytest.mark.parametrize(
    ("workflow", "message"),
    [
        ({"some": "thing"}, "neither nodes nor class types"),
        (saved(SAVE, node(1, "Reroute", [("", "*", 1)]), links=[[1, 1, 0, 9, 0, "IMAGE"]]), "in a circle"),
        (
            saved(SAVE, node(1, "GetNode", [], widgets_values=["x"]), links=[[1, 1, 0, 9, 0, "IMAGE"]]),
            "gets 'x', which no node sets",
        ),
        (
            saved(node(1, "Strange", [("image", "IMAGE", None)], widgets_values=[3]), links=[]),
            "nothing is known of the node type 'Strange'",
        ),
        (saved(node(1, "workflow>Mine", [], widgets_values=[3]), links=[]), "node 1 is a group node"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(workflow: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        to_api(workflow, SCHEMAS)


def test_what_a_muted_node_gave_is_missing() -> None:
    muted = node(1, "LoadImage", [], widgets_values=["a.png", "image"], mode=2)
    api = to_api(saved(SAVE, muted, links=[[1, 1, 0, 9, 0, "IMAGE"]]), SCHEMAS)
    assert list(api) == ["9"]
    assert "images" not in api["9"]["inputs"]


def test_values_by_the_names_in_the_file_where_the_type_is_not_known() -> None:
    slots = [{"name": name, "type": "INT", "link": None, "widget": {"name": name}} for name in ("seed", "steps")]
    strange = {"id": 1, "type": "Strange", "inputs": slots, "outputs": [], "widgets_values": [7, "fixed", 20]}
    assert to_api(saved(strange, links=[]), {})["1"]["inputs"] == {"seed": 7, "steps": 20}


@pytest.mark.parametrize(
    "kind",
    [
        "Bookmark",
        "Fast Actions Button",
        "Fast Bypasser",
        "Fast Groups Bypasser",
        "Fast Groups Muter",
        "Fast Muter",
        "Label",
        "Mute / Bypass Relay",
        "Mute / Bypass Repeater",
        "Node Collector",
        "Node Combiner",
        "Random Unmuter",
    ],
)
def test_what_only_the_browser_has_is_left_out(kind: str) -> None:
    button = node(1, f"{kind} (rgthree)", [("", "*", None)], widgets_values=[True, "x"])
    assert list(to_api(saved(button, SAVE, links=[]), SCHEMAS)) == ["9"]


@pytest.mark.parametrize("kind", ["Reroute", "Reroute (rgthree)"])
def test_reroutes_lead_on(kind: str) -> None:
    ground = node(1, "EmptyImage", [], widgets_values=[64, 64, 1, 0])
    links = [[1, 2, 0, 9, 0, "IMAGE"], [2, 1, 0, 2, 0, "IMAGE"]]
    api = to_api(saved(ground, node(2, kind, [("", "*", 2)]), SAVE, links=links), SCHEMAS)
    assert {id_: one["inputs"].get("images") for id_, one in api.items()} == {"1": None, "9": ["1", 0]}


@pytest.mark.parametrize("kind", ["audio", "folder", "video"])
def test_buttons_that_are_saved_among_the_values_are_no_inputs(kind: str) -> None:
    values = {"video": "x.mp4", f"choose {kind} to upload": "image", "videopreview": {}}
    api = to_api(saved(node(1, "VHS_LoadVideo", [], widgets_values=values), links=[]), SCHEMAS)
    assert api["1"]["inputs"] == {"video": "x.mp4"}


def test_a_workflow_of_another_comfyui_by_what_that_one_says() -> None:
    info = {"Strange": {"input": {"required": {"size": ["INT", {"default": 4}], "kind": [["a", "b"]]}}, "output": []}}
    strange = node(1, "Strange", [], widgets_values=[7])
    api = to_api(saved(strange, links=[]), workflow_schemas.from_object_info(info))
    assert api["1"]["inputs"] == {"size": 7, "kind": "a"}


def test_everywhere_by_type_and_prompts_by_name() -> None:
    api = to_api(json.loads((RECORDED.parent / "everywhere.json").read_text()), SCHEMAS)
    links = {
        (id_, name): value[0]
        for id_, one in api.items()
        for name, value in one["inputs"].items()
        if isinstance(value, list)
    }
    assert links == {
        ("5", "clip"): "2",
        ("6", "clip"): "2",
        ("9", "model"): "1",
        ("9", "positive"): "5",
        ("9", "negative"): "6",
        ("9", "latent_image"): "8",
        ("10", "samples"): "9",
        ("10", "vae"): "3",
        ("12", "images"): "10",
    }


@pytest.mark.parametrize(
    ("properties", "title", "linked"),
    [
        ({}, "Any", True),
        ({"ue_properties": {"title_regex": "Left"}}, "Left one", True),
        ({"ue_properties": {"title_regex": "Left"}}, "Right one", False),
        ({"ue_properties": {"input_regex": "^mask"}}, "Any", False),
    ],
)
def test_everywhere_goes_where_its_filters_let_it(properties: dict[str, Any], title: str, linked: bool) -> None:
    ground = node(1, "EmptyImage", [], widgets_values=[64, 64, 1, 0])
    caster = node(2, "Anything Everywhere", [("anything", "IMAGE", 1)], properties=properties)
    target = node(3, "SaveImage", [("images", "IMAGE", None)], widgets_values=["out"], title=title)
    api = to_api(saved(ground, caster, target, links=[[1, 1, 0, 2, 0, "IMAGE"]]), SCHEMAS)
    assert api["3"]["inputs"].get("images") == (["1", 0] if linked else None)


def test_links_that_use_everywhere_has_saved_are_taken() -> None:
    ground = node(1, "EmptyImage", [], widgets_values=[64, 64, 1, 0])
    target = node(3, "SaveImage", [("images", "IMAGE", None)], widgets_values=["out"])
    link = {"downstream": 3, "downstream_slot": 0, "upstream": "1", "upstream_slot": 0, "type": "IMAGE"}
    api = to_api(saved(ground, target, links=[], extra={"ue_links": [link]}), SCHEMAS)
    assert api["3"]["inputs"]["images"] == ["1", 0]
