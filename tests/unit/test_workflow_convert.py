"""From the browser's format to the API's: as the browser does it, and where it can only be refused."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import queued
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.check import problems, read
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
    api = workflows.load_api(name)
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
            saved(node(1, "Strange", [("image", "IMAGE", None)], widgets_values=[3]), links=[]),
            "too little is known of the node type 'Strange'",
        ),
        (
            saved(node(1, "Strange", [("steps", "INT", None)], widgets_values=["red", 3, 0.5]), links=[]),
            "too little is known of the node type 'Strange'",
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
    file = saved(node(1, "VHS_LoadVideo", [], widgets_values=values), links=[])
    known = SCHEMAS["VHS_LoadVideo"]
    inputs = to_api(file, SCHEMAS)["1"]["inputs"]
    assert inputs["video"] == "x.mp4"
    assert inputs.keys() == {one.name for one in known.inputs if one.widget}
    assert to_api(file, {})["1"]["inputs"] == {"video": "x.mp4"}


def test_a_workflow_of_another_comfyui_by_what_that_one_says() -> None:
    info = {"Strange": {"input": {"required": {"size": ["INT", {"default": 4}], "kind": [["a", "b"]]}}, "output": []}}
    strange = node(1, "Strange", [], widgets_values=[7])
    api = to_api(saved(strange, links=[]), workflow_schemas.from_object_info(info))
    assert api["1"]["inputs"] == {"size": 7, "kind": "a"}


@pytest.mark.parametrize("known", [True, False])
def test_everywhere_by_type_and_prompts_by_name(known: bool) -> None:
    schemas = {name: one for name, one in SCHEMAS.items() if known or "Everywhere" not in name}
    api = to_api(json.loads((RECORDED.parent / "everywhere.json").read_text()), schemas)
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


# -- the browser's rules, one by one; tests/e2e/test_frontend.py compares with the browser itself

GROUND = node(1, "EmptyImage", [], widgets_values=[64, 32, 1, 0])
A, B = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"


def link(number: int, origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> dict[str, Any]:
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, (number, origin, origin_slot, target, target_slot, kind), strict=True))


def widgets(*names: str, links: tuple[int | None, ...] = ()) -> list[dict[str, Any]]:
    rows = zip(names, links or (None,) * len(names), strict=True)
    return [{"name": name, "type": "INT", "link": number, "widget": {"name": name}} for name, number in rows]


def definition(id_: str, kind: str, values: list[Any], *names: str) -> dict[str, Any]:
    """A subgraph around one node, which shows some of that one's widgets under their names with a dash."""
    numbers = tuple(range(1, len(names) + 1))
    return {
        "id": id_,
        "name": "Part",
        "inputs": [{"name": f"{n}-", "type": "INT", "linkIds": [i]} for i, n in zip(numbers, names, strict=True)],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "linkIds": [20]}],
        "nodes": [{**node(11, kind, [], widgets_values=values), "inputs": widgets(*names, links=numbers)}],
        "links": [
            *(link(i, -10, i - 1, 11, i - 1, "INT") for i in numbers),
            link(20, 11, 0, -20, 0, "IMAGE"),
        ],
    }


def subgraph(values: list[Any] | None, properties: dict[str, Any], *listed: str) -> dict[str, Any]:
    """A file with a subgraph, whose node holds values; the order of its inputs in the file does not count."""
    instance = {**node(1, A, [], widgets_values=values, properties=properties), "inputs": widgets(*listed)}
    parts = [definition(A, "EmptyImage", [8, 9, 1, 2], "width", "height", "color")]
    return saved(instance, SAVE, links=[[1, 1, 0, 9, 0, "IMAGE"]], definitions={"subgraphs": parts})


@pytest.mark.parametrize(
    ("values", "listed", "slots", "expected"),
    [
        ([320, 192, 5], [], [], (320, 192, 5)),
        ([320, 192, 5], [], ["color-", "height-"], (320, 192, 5)),
        ([5, 192, 320], [["-1", "color-"], ["-1", "height-"], ["-1", "width-"]], [], (320, 192, 5)),
        ([320, 192], [], ["width-"], (320, 192, 2)),
        (None, [], [], (8, 9, 2)),
        ([], [["11", "width"], ["-1", "height-"]], [], (8, 9, 2)),
        ([7, 8, 9], [["11", "color"], ["11", "width"], ["11", "height"]], [], (8, 9, 7)),
    ],
)
def test_values_of_a_subgraph_belong_to_the_inputs_of_its_definition(
    values: list[Any] | None, listed: list[Any], slots: list[str], expected: tuple[int, ...]
) -> None:
    api = to_api(subgraph(values, {"proxyWidgets": listed}, *slots), SCHEMAS)
    inputs = api["1:11"]["inputs"]
    assert (inputs["width"], inputs["height"], inputs["color"]) == expected


def test_of_nested_subgraphs_the_outermost_value_counts() -> None:
    inner = definition(A, "EmptyImage", [8, 9, 1, 2], "width", "height")
    outer = definition(B, A, [16, 24], "width-", "height-")
    file = saved(
        node(1, B, [], widgets_values=[320]),
        SAVE,
        links=[[1, 1, 0, 9, 0, "IMAGE"]],
        definitions={"subgraphs": [inner, outer]},
    )
    inputs = to_api(file, SCHEMAS)["1:11:11"]["inputs"]
    assert (inputs["width"], inputs["height"], inputs["color"]) == (320, 24, 2)


INSIDE = [["11", "width"], ["11", "color"]]


@pytest.mark.parametrize(
    ("values", "listed", "expected"),
    [
        ([320, 5], INSIDE, (320, 5)),
        ([320], INSIDE, (320, 2)),
        ([None, 5], INSIDE, (8, 5)),
        (None, INSIDE, (8, 2)),
        ([320, 5], json.dumps(INSIDE), (320, 5)),
        ([1, 5], [["12", "width"], ["11", "color"]], (8, 5)),
        ([1, 5], [["11", "$$canvas-image-preview"], ["11", "color"]], (8, 5)),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_node_of_a_subgraph_gives_values_to_widgets_inside_that_it_shows_without_an_input(
    values: list[Any] | None, listed: Any, expected: tuple[int, int], nested: bool
) -> None:
    inner = node(1, A, [], widgets_values=values, properties={"proxyWidgets": listed})
    parts, file_node = [definition(A, "EmptyImage", [8, 9, 1, 2])], inner
    if nested:  # the outer one gives the width again, and leaves the color to the inner one
        parts.append({**definition(B, A, []), "nodes": [{**inner, "id": 11}]})
        more = {"proxyWidgets": [["11", "width", "11"]]}
        file_node = node(1, B, [], widgets_values=[640], properties=more)
        expected = (
            640 if ["11", "width"] in (json.loads(listed) if isinstance(listed, str) else listed) else 8,
            expected[1],
        )
    file = saved(file_node, SAVE, links=[[1, 1, 0, 9, 0, "IMAGE"]], definitions={"subgraphs": parts})
    inputs = to_api(file, SCHEMAS)["1:11:11" if nested else "1:11"]["inputs"]
    assert (inputs["width"], inputs["color"]) == expected


def test_each_node_of_a_subgraph_gives_its_own_values_the_first_of_a_name_first() -> None:
    part = definition(A, "EmptyImage", [8, 9, 1, 2])
    part["nodes"].append(node(12, "EmptyImage", [], widgets_values=[8, 9, 1, 2]))
    inner = node(11, A, [], properties={"proxyWidgets": [["11", "width"], ["12", "width"]]}, widgets_values=[3, 4])
    outer = {**definition(B, A, []), "nodes": [inner]}
    rows: list[tuple[list[int], list[list[str]]]] = [
        ([5, 6], [["11", "width", "11"], ["11", "width", "12"]]),
        ([7], [["11", "width"]]),
    ]
    instances = [
        node(number, B, [], widgets_values=values, properties={"proxyWidgets": listed})
        for number, (values, listed) in enumerate(rows, 1)
    ]
    api = to_api(saved(*instances, links=[], definitions={"subgraphs": [part, outer]}), SCHEMAS)
    assert {id_: one["inputs"]["width"] for id_, one in api.items()} == {
        "1:11:11": 5,
        "1:11:12": 6,
        "2:11:11": 7,
        "2:11:12": 4,
    }


def test_a_subgraph_around_a_type_that_is_not_known_is_read() -> None:
    file = saved(
        node(1, A, [], widgets_values=[5]),
        SAVE,
        links=[[1, 1, 0, 9, 0, "IMAGE"]],
        definitions={"subgraphs": [definition(A, "Strange", ["red", 3, 0.5], "strength")]},
    )
    api = read(file, SCHEMAS)
    assert (api["9"]["inputs"]["images"], api["1:11"]["class_type"]) == (["1:11", 0], "Strange")
    with pytest.raises(ConversionError, match="too little is known of the node type 'Strange'"):
        to_api(file, SCHEMAS)


def test_a_link_to_an_input_that_a_subgraph_does_not_have_gives_nothing() -> None:
    part = definition(A, "InvertMask", [])
    part["nodes"][0]["inputs"] = [{"name": "mask", "type": "MASK", "link": 1}]
    part["links"].append(link(1, -10, 7, 11, 0, "MASK"))
    api = to_api(saved(node(1, A, []), links=[], definitions={"subgraphs": [part]}), SCHEMAS)
    assert api["1:11"]["inputs"] == {}


@pytest.mark.parametrize("filter_", ["[", "(?<name>a)"])
def test_a_filter_that_cannot_be_read_is_named(filter_: str) -> None:
    file = saved(
        node(1, "EmptyImage", [], widgets_values=[8, 8, 1, 0]),
        node(2, "Anything Everywhere?", [("anything", "*", 1)], widgets_values=[filter_, ".*", ".*"]),
        node(9, "SaveImage", [("images", "IMAGE", None)], widgets_values=["out"]),
        links=[[1, 1, 0, 2, 0, "IMAGE"]],
    )
    with pytest.raises(ConversionError, match=r"node 2 .* its filter cannot be read"):
        to_api(file, SCHEMAS)


def test_more_reroutes_than_anyone_has_are_refused() -> None:
    many = range(10, 3000)
    reroutes = [node(number, "Reroute", [("", "*", number)]) for number in many]
    links = [[number, number - 1, 0, number, 0, "IMAGE"] for number in many]
    save = node(9999, "SaveImage", [("images", "IMAGE", 3000)], widgets_values=["out"])
    with pytest.raises(ConversionError, match="no workflow"):
        read(saved(*reroutes, save, links=[*links, [3000, 2999, 0, 9999, 0, "IMAGE"]]), SCHEMAS)


def test_a_subgraph_inside_itself_is_refused() -> None:
    file = saved(node(1, A, []), links=[], definitions={"subgraphs": [definition(A, A, [], "x")]})
    with pytest.raises(ConversionError, match="inside itself"):
        to_api(file, SCHEMAS)


@pytest.mark.parametrize("mode", [0, 2])
def test_a_set_passes_on_what_it_is_given(mode: int) -> None:
    setter = node(2, "SetNode", [("IMAGE", "IMAGE", 2)], widgets_values=["pic"], mode=mode)
    getter = node(3, "GetNode", [], widgets_values=["pic"])
    batch = node(4, "ImageBatch", [("image1", "IMAGE", 3), ("image2", "IMAGE", 4)])
    links = [[2, 1, 0, 2, 0, "IMAGE"], [3, 2, 0, 4, 0, "*"], [4, 3, 0, 4, 1, "IMAGE"], [1, 4, 0, 9, 0, "IMAGE"]]
    inputs = to_api(saved(GROUND, setter, getter, batch, SAVE, links=links), SCHEMAS)["4"]["inputs"]
    assert inputs == {"image2": ["1", 0]} | ({} if mode else {"image1": ["1", 0]})


@pytest.mark.parametrize("name", ["gone", "", None])
def test_a_get_without_its_set_leaves_an_input_without_a_link(name: str | None) -> None:
    setter = node(3, "SetNode", [("IMAGE", "IMAGE", 2)], widgets_values=[name or ""])
    getter = node(2, "GetNode", [], widgets_values=[name])
    links = [[1, 2, 0, 9, 0, "IMAGE"], *([] if name else [[2, 1, 0, 3, 0, "IMAGE"]])]
    api = to_api(saved(GROUND, *([] if name else [setter]), getter, SAVE, links=links), SCHEMAS)
    assert api["9"]["inputs"] == {"filename_prefix": "out"}


@pytest.mark.parametrize("through", ["", "Reroute"])
def test_a_bypass_gives_the_type_that_the_last_input_wants(through: str) -> None:
    to_mask = node(2, "ImageToMask", [("image", "IMAGE", 2)], widgets_values=["red"], mode=4)
    reroute = node(3, through, [("", "*", 3)])
    inverted = node(4, "InvertMask", [("mask", "MASK", 4)])
    links: list[list[Any]] = [[2, 1, 0, 2, 0, "IMAGE"], [3, 2, 0, 3, 0, "*"], [4, 3 if through else 2, 0, 4, 0, "*"]]
    api = to_api(saved(GROUND, to_mask, *([reroute] if through else []), inverted, links=links), SCHEMAS)
    assert api["4"]["inputs"] == {}


@pytest.mark.parametrize(("giver", "end"), [("EmptyImage", "SaveImage"), ("SolidMask", "MaskToImage")])
def test_a_bypass_whose_output_has_the_type_of_its_input_passes_it_on(giver: str, end: str) -> None:
    ends = {"SaveImage": ("images", "IMAGE"), "MaskToImage": ("mask", "MASK")}
    resized = node(2, "ResizeImageMaskNode", [("input", "IMAGE,MASK", 2)], widgets_values=["match size"], mode=4)
    last = node(9, end, [(*ends[end], 1)], widgets_values=["out"])
    links = [[2, 1, 0, 2, 0, "*"], [1, 2, 0, 9, 0, "*"]]
    api = to_api(saved(node(1, giver, []), resized, last, links=links), SCHEMAS)
    assert api["9"]["inputs"][ends[end][0]] == ["1", 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"3": "center", "0": "area", "1": 5, "2": 6}, ("area", 5, 6, "center")),
        ({"width": 5, "crop": "center"}, ("nearest-exact", 5, 512, "center")),
        ([None, 5, 6, None], ("nearest-exact", 5, 6, "disabled")),
        (["area", 5], ("area", 5, 512, "disabled")),
    ],
)
def test_values_in_other_forms_are_those_of_the_widgets(values: Any, expected: tuple[Any, ...]) -> None:
    scaled = node(1, "ImageScale", [], widgets_values=values)
    assert tuple(to_api(saved(scaled, links=[]), SCHEMAS)["1"]["inputs"].values()) == expected


POWER_LORA = "Power Lora Loader (rgthree)"
POWER_LORA_INFO = {
    POWER_LORA: {
        "input": {"required": {}, "optional": {"model": ["MODEL"], "clip": ["CLIP"]}},
        "output": ["MODEL", "CLIP"],
        "output_name": ["MODEL", "CLIP"],
        "python_module": "custom_nodes.rgthree-comfy",
    }
}


def test_power_loras_are_named_by_their_rows() -> None:
    rows = [{"on": True, "lora": "a.safetensors", "strength": 0.8, "strengthTwo": None}, {"on": False, "lora": "b"}]
    loader = node(1, POWER_LORA, [], widgets_values=[{}, {"type": "x"}, *rows, {}, ""])
    for known in ({}, workflow_schemas.from_object_info(POWER_LORA_INFO)):
        inputs = to_api(saved(loader, links=[]), known)["1"]["inputs"]
        assert inputs["lora_1"] == {"on": True, "lora": "a.safetensors", "strength": 0.8}
        assert inputs["lora_2"] == rows[1]
        assert workflows.needs({"1": {"class_type": loader["type"], "inputs": inputs}}, known, EMPTY).unknown == (
            "a.safetensors",
        )


EMPTY: dict[str, Any] = {"files": {}, "sets": {}}


def test_rows_of_a_node_that_is_known_in_part_are_not_lost() -> None:
    info = {"Stack": {"input": {"required": {"count": ["INT"]}}, "output": []}}
    stack = node(1, "Stack", [], widgets_values=[1, {"lora": "a.safetensors"}])
    with pytest.raises(ConversionError, match="its values have no names"):
        to_api(saved(stack, links=[]), workflow_schemas.from_object_info(info))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"format": "video/h264-mp4"}, {"pingpong": False, "save_output": True, "crf": 19, "frame_rate": 8}),
        ({"format": "image/gif", "save_image": False}, {"save_output": False}),
        ([16, 0, "old", "image/gif", True, False], {"frame_rate": 16, "pingpong": True, "save_output": False}),
    ],
)
def test_values_of_video_helper_suite_that_are_missing_have_their_defaults(values: Any, expected: Any) -> None:
    inputs = to_api(saved(node(1, "VHS_VideoCombine", [], widgets_values=values), links=[]), SCHEMAS)["1"]["inputs"]
    assert {name: inputs[name] for name in expected} == expected


def test_a_primitive_gives_its_value_directly_only() -> None:
    primitive = node(2, "PrimitiveNode", [], widgets_values=[256, "fixed"], mode=2)
    reroute = node(3, "Reroute", [("", "*", 3)])
    ground = {**GROUND, "inputs": widgets("width", "height", links=(2, 4))}
    links = [[2, 2, 0, 1, 0, "INT"], [3, 2, 0, 3, 0, "*"], [4, 3, 0, 1, 1, "INT"]]
    inputs = to_api(saved(primitive, reroute, ground, links=links), SCHEMAS)["1"]["inputs"]
    assert (inputs["width"], inputs["height"]) == (256, 32)


@pytest.mark.parametrize("nested", [False, True])
def test_a_primitive_gives_its_value_to_a_subgraph_but_not_to_one_inside_it(nested: bool) -> None:
    parts = [definition(A, "EmptyImage", [8, 9, 1, 2], "width")]
    parts += [definition(B, A, [16], "width-")] if nested else []
    name = "width--" if nested else "width-"
    instance = {**node(1, B if nested else A, [], widgets_values=[320]), "inputs": widgets(name, links=(2,))}
    primitive = node(2, "PrimitiveNode", [], widgets_values=[256, "fixed"])
    links = [[1, 1, 0, 9, 0, "IMAGE"], [2, 2, 0, 1, 0, "INT"]]
    file = saved(instance, primitive, SAVE, links=links, definitions={"subgraphs": parts})
    api = to_api(file, SCHEMAS)
    assert api["1:11:11" if nested else "1:11"]["inputs"]["width"] == (8 if nested else 256)


def test_a_subgraph_that_hands_its_input_on() -> None:
    part = {**definition(A, "ImageInvert", []), "inputs": [{"name": "image", "type": "IMAGE", "linkIds": [20]}]}
    part |= {"nodes": [], "links": [link(20, -10, 0, -20, 0, "IMAGE")]}
    through = [node(number, A, [("image", "IMAGE", number)]) for number in (2, 3)]
    links = [[2, 1, 0, 2, 0, "IMAGE"], [3, 2, 0, 3, 0, "IMAGE"], [1, 3, 0, 9, 0, "IMAGE"]]
    file = saved(GROUND, *through, SAVE, links=links, definitions={"subgraphs": [part]})
    assert to_api(file, SCHEMAS)["9"]["inputs"]["images"] == ["1", 0]


def test_values_of_a_new_file_have_names() -> None:
    values = {"seed": 7, "control_after_generate": "fixed", "mood": "calm"}
    strange = node(1, "Strange", [], widgets_values=[7, "fixed", "calm"], widgets_values_named=values)
    assert to_api(saved(strange, links=[]), {})["1"]["inputs"] == {"seed": 7, "mood": "calm"}


def test_lists_are_wrapped_as_the_browser_does() -> None:
    info: dict[str, Any] = {
        "Many": {"input": {"required": {"names": ["COMBO", {"options": ["a", "b"], "multiselect": True}]}}}
    }
    info["Many"] |= {"output": []}
    known = workflow_schemas.from_object_info(info)
    many = node(1, "Many", [], widgets_values=[["a", "b"]])
    assert to_api(saved(many, links=[]), known)["1"]["inputs"] == {"names": {"__value__": ["a", "b"]}}


def test_dummy_values_of_inputs_without_widgets_are_dropped() -> None:
    info: dict[str, Any] = {
        "Label": {"input": {"required": {"x": ["INT"], "text": ["STRING", {"forceInput": True}], "y": ["INT"]}}}
    }
    info["Label"] |= {"output": []}
    known = workflow_schemas.from_object_info(info)
    for values in ([1, "old", 2], [1, 2]):
        label = node(1, "Label", [], widgets_values=values)
        assert to_api(saved(label, links=[]), known)["1"]["inputs"] == {"x": 1, "y": 2}


# -- inputs of today's cores, whose number and names depend on values

RESIZE = ["COMFY_DYNAMICCOMBO_V3", {"options": [
    {"key": "exact", "inputs": {"required": {"width": ["INT", {"min": 8}], "height": ["INT", {}]}}},
    {"key": "longest", "inputs": {"required": {"edge": ["INT", {"default": 512}]}}},
]}]  # fmt: skip
IMAGES = ["COMFY_AUTOGROW_V3", {"template": {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image",
          "min": 1, "max": 3}}]  # fmt: skip
GUIDE = ["COMFY_DYNAMICSLOT_V3", {"slotType": "IMAGE", "inputs": {"required": {"strength": ["FLOAT", {"max": 1}]}}}]
ANYTHING = ["COMFY_MATCHTYPE_V3", {"template": {"template_id": "T", "allowed_types": "IMAGE,MASK"}}]
V3 = workflow_schemas.from_object_info(
    {
        "Make": {"input": {}, "output": ["IMAGE"]},
        "Resize": {
            "input": {
                "required": {"how": RESIZE, "after": ["INT", {}], "images": IMAGES, "any": ANYTHING},
                "optional": {"guide": GUIDE},
            },
            "output": ["COMFY_MATCHTYPE_V3"],
            "output_node": True,
        },
    }
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["exact", 64, 32, 7], {"how": "exact", "how.width": 64, "how.height": 32, "after": 7}),
        (["longest", 256, 7], {"how": "longest", "how.edge": 256, "after": 7}),
        ([], {"how": "exact", "how.width": 0, "how.height": 0, "after": 0}),
    ],
)
def test_a_choice_brings_inputs_of_its_own(values: list[Any], expected: dict[str, Any]) -> None:
    assert to_api(saved(node(1, "Resize", [], widgets_values=values), links=[]), V3)["1"]["inputs"] == expected


@pytest.mark.parametrize(
    ("kind", "saved_as", "given"),
    [
        ("COLOR", ["#123456"], {"w": "#123456"}),
        ("COLORS", [["#123456"]], {"w": {"__value__": ["#123456"]}}),
        ("CURVE", [{"points": []}], {"w": {"points": []}}),
        ("CURVE", [[[0, 1]]], {"w": {"__type__": "CURVE", "__value__": [[0, 1]]}}),
        ("BOUNDING_BOX", [{"x": 1}, 1, 2, 3, 4], {"w": {"x": 1}}),
        ("RESOLUTION_PREVIEW", ["64 x 64"], {}),
        ("INT,FLOAT", [3], {"w": 3}),
    ],
)
def test_widgets_of_todays_cores(kind: str, saved_as: list[Any], given: dict[str, Any]) -> None:
    inputs = {"a": ["INT"], "w": [kind, {"widgetType": "INT"} if "," in kind else {}], "z": ["INT"]}
    known = workflow_schemas.from_object_info({"Kind": {"input": {"required": inputs}, "output": []}})
    api = to_api(saved(node(1, "Kind", [], widgets_values=[1, *saved_as, 8]), links=[]), known)
    assert api["1"]["inputs"] == {"a": 1, **given, "z": 8}


GIVEN = {"how": "exact", "how.width": 64, "how.height": 32, "after": 7, "images.image0": ["2", 0], "any": ["2", 0]}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"images.image2": ["2", 0], "guide": ["2", 0], "guide.strength": 0.5}, []),
        ({"how.width": 4}, ["how.width must be at least 8, found 4"]),
        ({"how": "longest"}, ["the input how.edge is missing", "Resize has no input how.width, how.height"]),
        ({"how": "other"}, ["how must be one of exact, longest, found 'other'"]),
        ({"images.image0": None}, ["the input images.image0 is missing"]),
        ({"images.image3": ["2", 0]}, ["Resize has no input images.image3"]),
        ({"guide": ["2", 0]}, ["the input guide.strength is missing"]),
        ({"guide": ["2", 0], "guide.strength": 2}, ["guide.strength must be at most 1, found 2"]),
    ],
)
def test_todays_inputs_are_checked(change: dict[str, Any], found: list[str]) -> None:
    inputs = {name: value for name, value in {**GIVEN, **change}.items() if value is not None}
    api = {"1": {"class_type": "Resize", "inputs": inputs}, "2": {"class_type": "Make", "inputs": {}}}
    lines = [line.partition(": ")[2] for line in problems(api, V3, strict=True)]
    assert set(found) <= set(lines)
    assert bool(found) == bool(lines)


def test_todays_inputs_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "core.json").write_text(workflow_schemas.write(V3.values(), "0" * 40))
    assert workflow_schemas.recorded(tmp_path) == V3


def browser_cases() -> dict[str, Any]:
    """Graphs of these kinds for tests/e2e/test_frontend.py, which asks the browser."""
    every = ("width", "height", "color")
    found: dict[str, Any] = {
        "values of a subgraph": subgraph([320, 192, 5], {}, *(f"{name}-" for name in every)),
        "few inputs of a subgraph": subgraph([320, 192, 5], {}, "color-"),
        "fewer values than inputs": subgraph([320], {}),
        "values in the order of a list": subgraph(
            [5, 192, 320], {"proxyWidgets": [["-1", "color-"], ["-1", "height-"], ["-1", "width-"]]}
        ),
        "no values": subgraph(None, {"proxyWidgets": []}),
    }
    found["widgets inside without inputs"] = subgraph(
        [3, 192, 320], {"proxyWidgets": [["11", "batch_size"], ["-1", "height-"], ["-1", "width-"]]}
    )
    rows = [{"on": True, "lora": "a.safetensors", "strength": 0.8, "strengthTwo": None}, {"on": False, "lora": "b"}]
    for name, values in {
        "Power Lora Loader": (POWER_LORA, [{}, {"type": "PowerLoraLoaderHeaderWidget"}, *rows, {}, ""]),
        "VHS defaults": ("VHS_VideoCombine", {"format": "video/h264-mp4"}),
        "VHS old names": ("VHS_VideoCombine", {"format": "image/gif", "save_image": False}),
        "VHS old list": ("VHS_VideoCombine", [16, 0, "old", "image/gif", True, False]),
        "a forced input": ("AddLabel", [7, 8, 9, 10, "white", "black", "FreeMono.ttf", "Text", "up"]),
    }.items():
        found[name] = saved({**node(1, values[0], [], widgets_values=values[1]), "outputs": []}, links=[])
    getter = node(2, "GetNode", [], widgets_values=["gone"])
    found["a Get without a Set"] = saved(GROUND, getter, SAVE, links=[[1, 2, 0, 9, 0, "IMAGE"]])
    setter = node(2, "SetNode", [("IMAGE", "IMAGE", 2)], widgets_values=["pic"])
    links = [[2, 1, 0, 2, 0, "IMAGE"], [1, 2, 0, 9, 0, "*"]]
    found["a Set that passes on"] = saved(GROUND, setter, SAVE, links=links)
    to_mask = {**node(2, "ImageToMask", [("image", "IMAGE", 2)], widgets_values=["red"], mode=4)}
    to_mask["outputs"] = [{"name": "MASK", "type": "MASK"}]
    reroute = {**node(3, "Reroute", [("", "*", 3)]), "outputs": [{"name": "", "type": "*"}]}
    inverted = {**node(4, "InvertMask", [("mask", "MASK", 4)]), "outputs": [{"name": "MASK", "type": "MASK"}]}
    links = [[2, 1, 0, 2, 0, "IMAGE"], [3, 2, 0, 3, 0, "*"], [4, 3, 0, 4, 0, "*"]]
    found["a bypass before a reroute"] = saved(GROUND, to_mask, reroute, inverted, links=links)
    return found | {name: graph for name, (graph, _id, _inputs) in queued_cases().items()}


def queued_cases() -> dict[str, tuple[dict[str, Any], str, dict[str, Any]]]:
    """Graphs of which the browser fills in parts as it queues: for it and for us, with a node and what it gets."""
    found: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {}
    written = "a fox // runs\n{red|red} /* or\nblue */ \\{x\\|y\\} {{n}}|{"
    drawn = "a fox \nred  {x|y} n|"
    texts = node(1, "Texts", [], widgets_values=[written, written, written])
    filled = {"area": drawn, "line": drawn, "plain": written}
    found["texts that are drawn"] = saved(texts, SAVE, links=[[1, 1, 0, 9, 0, "IMAGE"]]), "1", filled
    ground = {**GROUND, "title": "My picture", "properties": {"Node name for S&R": "Ground"}}
    named = node(3, "KSampler", [], widgets_values=[5, "fixed", 20, 8.0, "a/b", "simple", 0.5])
    named["outputs"] = []
    for name, made in {
        "%Ground.width%-%My picture.height%-%KSampler.cfg%-%KSampler.denoise%": "64-32-8-0.5",
        "%KSampler.sampler_name%%date:yyyy.MM%%date:%%None.width%%Ground.none%%width%": (
            "a_b%date:yyyy.MM%%None.width%%Ground.none%%width%"
        ),
    }.items():
        save = {**SAVE, "widgets_values": [name]}
        graph = saved(ground, named, save, links=[[1, 1, 0, 9, 0, "IMAGE"]])
        found[f"names {len(found)}"] = graph, "9", {"images": ["1", 0], "filename_prefix": made}
    part = definition(A, "EmptyImage", [8, 9, 1, 2])
    part["nodes"][0]["inputs"] = widgets("color", links=(5,))
    giver = node(12, "PrimitiveInt", [], widgets_values=[7, "fixed"])
    giver["outputs"] = [{"name": "INT", "type": "INT", "links": []}]
    part["nodes"].append(giver)
    part["links"].append(link(5, 12, 0, 11, 0, "INT"))
    instance = node(1, A, [], widgets_values=[5], properties={"proxyWidgets": [["11", "color"]]})
    graph = saved(instance, SAVE, links=[[1, 1, 0, 9, 0, "IMAGE"]], definitions={"subgraphs": [part]})
    values = {"width": 8, "height": 9, "batch_size": 1, "color": 5}
    found["a shown widget that is linked inside"] = graph, "1:11", values
    combo = {**node(1, "CustomCombo", [], widgets_values=["b", 0, "a", "b", ""]), "outputs": []}
    chosen = {"choice": "b", "index": 1, "option1": "a", "option2": "b"}
    found["choices that people write"] = saved(combo, links=[]), "1", chosen
    primitive = node(2, "PrimitiveNode", [], widgets_values=[99999, "fixed"])
    primitive["outputs"] = [{"name": "INT", "type": "INT", "links": [], "widget": {"name": "width"}}]
    wide = {**GROUND, "inputs": widgets("width", links=(2,))}
    links = [[1, 1, 0, 9, 0, "IMAGE"], [2, 2, 0, 1, 0, "INT"]]
    values = {"width": 16384, "height": 32, "batch_size": 1, "color": 0}
    found["a primitive beyond a widget's limit"] = saved(wide, primitive, SAVE, links=links), "1", values
    return found


TEXTS = {
    "Texts": {
        "input": {
            "required": {
                "area": ["STRING", {"multiline": True, "dynamicPrompts": True}],
                "line": ["STRING", {"dynamicPrompts": True}],
                "plain": ["STRING", {"multiline": True}],
            }
        },
        "output": ["IMAGE"],
    }
}


@pytest.mark.parametrize("name", queued_cases())
def test_a_job_gets_what_the_browser_fills_in_as_it_queues(name: str) -> None:
    graph, id_, inputs = queued_cases()[name]
    known = {**SCHEMAS, **workflow_schemas.from_object_info(TEXTS)}
    assert to_api(graph, known, queued=True)[id_]["inputs"] == inputs
    kept = to_api(graph, known)[id_]["inputs"]
    assert (kept == inputs) == (not name.startswith(("names", "texts")))  # a file that is placed keeps its texts


def test_one_of_several_texts_is_drawn_and_dates_are_written() -> None:
    drawn = {queued.drawn("a {red|{light|dark} blue|\\{x\\}} fox") for _ in range(200)}
    assert drawn == {f"a {one} fox" for one in ("red", "light blue", "dark blue", "{x}")}
    assert queued.drawn("{a|b|c}", lambda parts: parts[-1]) == "c"

    now = datetime(2026, 3, 4, 5, 6, 7)
    name = "%date:yyyy-MM-dd/hhmmss%_%date:yy M d h m s yyy% %date:yyyy.MM.dd% 100% %date% %a.b%"
    made = "2026-03-04/050607_26 3 4 5 6 7 yyy 2026 100% %date% %a.b%"
    assert queued.filled(name, lambda _node, widget: {"width": 1}[widget], now) == made


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "true"), (1e20, "1" + 20 * "0"), (2e-05, "0.00002"), ([1, "a"], "1,a"), ('a\n"b', "a__b")],
)
def test_values_in_names_are_written_as_the_browser_writes_them(value: Any, text: str) -> None:
    assert queued.filled("%a.b%", lambda _node, _widget: value, datetime.now()) == text


GOOD = {"input": {"required": {"x": ["INT", {}]}}, "output": ["IMAGE"]}


@pytest.mark.parametrize(
    "strange",
    [
        *(None, [], "x", {}, {"input": None, "output": []}, {"input": {}}, {"input": {}, "output": None}),
        {"input": {"required": [1]}, "output": []},
        {"input": {"required": {"x": []}}, "output": []},
        *(
            {"input": {"required": {"x": [kind, options]}}, "output": []}
            for kind, options in (
                ("COMFY_AUTOGROW_V3", {}),
                ("COMFY_AUTOGROW_V3", {"template": 5}),
                ("COMFY_AUTOGROW_V3", {"template": {"input": {}, "prefix": "x", "max": "5", "min": 0}}),
                ("COMFY_DYNAMICCOMBO_V3", {"options": [5]}),
                ("COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "k", "inputs": [5]}]}),
                ("COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "k", "inputs": {"required": {"y": []}}}]}),
                (["a"], {"formats": {"a": [[]]}}),
                (["a"], {"formats": ["a"]}),
            )
        ),
    ],
)
def test_a_type_that_cannot_be_read_hides_no_other(strange: object) -> None:
    known = workflow_schemas.from_object_info({"Strange": strange, "Good": GOOD})
    assert list(known) == ["Good"]


def test_a_list_grows_to_no_end() -> None:
    grown = {"template": {"input": {"required": {"i": ["IMAGE", {}]}}, "prefix": "i", "min": 1, "max": 10**9}}
    entry = {"input": {"required": {"x": ["COMFY_AUTOGROW_V3", grown]}}, "output": []}
    assert len(workflow_schemas.from_object_info({"Long": entry})["Long"].inputs) == 1000
