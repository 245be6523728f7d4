"""Node types of packs that a host does not have: replaced in files of both formats, subgraphs included."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import check
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.browser import to_browser
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError, to_api
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.replace import NOTE, replace, table
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import from_object_info

TYPES = Path(__file__).parents[1] / "data/replacement_types.json"
HERE = from_object_info(json.loads(TYPES.read_text(encoding="utf-8")), "wanmetal-marker")
"""Types of ComfyUI 0.33.0, ComfyUI-KJNodes and ComfyUI_essentials, as their /object_info has them."""

GIVEN: dict[str, list[Any]] = {
    "IMAGE": ["1", 0],
    "MASK": ["1", 1],
    "LATENT": ["2", 0],
    "STRING": ["3", 0],
    "MODEL": ["4", 0],
    "CONDITIONING": ["6", 0],
    "INT": ["7", 0],
}
BEFORE = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "wanmetal-marker.png"}},
    "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "3": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a text"}},
    "4": {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "wanmetal-marker.safetensors", "weight_dtype": "default"},
    },
    "5": {
        "class_type": "CLIPLoader",
        "inputs": {"clip_name": "wanmetal-marker.safetensors", "type": "wan", "device": "default"},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["5", 0]}},
    "7": {"class_type": "PrimitiveInt", "inputs": {"value": 3}},
    "8": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}},
}
AFTER = {
    "IMAGE": ("PreviewImage", {}, "images"),
    "MASK": ("PreviewAny", {}, "source"),
    "LATENT": ("VAEDecode", {"vae": ["8", 0]}, "samples"),
    "UPSCALE_MODEL": ("PreviewAny", {}, "source"),
}
SAMPLER = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"}
MODEL = {"eta": 0.5, "sampler_name": "multistep/res_2m", "scheduler": "bong_tangent", "steps": 30, "denoise": 1.0}
MODEL |= {"cfg": 3.0, "seed": 7, "bongmath": True}
SHOWN: list[tuple[str, dict[str, Any], dict[str, str], list[str], list[str]]] = [
    # type, values, linked inputs, types of the outputs, the types that take its place
    (
        "RIFE VFI",
        {"ckpt_name": "rife49.pth", "clear_cache_after_n_frames": 5, "multiplier": 4},
        {"frames": "IMAGE"},
        ["IMAGE"],
        ["FrameInterpolationModelLoader", "FrameInterpolate"],
    ),
    (
        "FILM VFI",
        {"ckpt_name": "film_net_fp32.pt", "clear_cache_after_n_frames": 10, "multiplier": 2},
        {"frames": "IMAGE"},
        ["IMAGE"],
        ["FrameInterpolationModelLoader", "FrameInterpolate"],
    ),
    ("ImageListToImageBatch", {}, {"images": "IMAGE"}, ["IMAGE"], ["ImageListToBatch+"]),
    ("ImageBatchToImageList", {}, {"image": "IMAGE"}, ["IMAGE"], ["RebatchImages"]),
    ("easy cleanGpuUsed", {}, {"anything": "IMAGE"}, ["IMAGE"], ["VRAM_Debug"]),
    ("easy clearCacheAll", {}, {"anything": "LATENT"}, ["LATENT"], ["VRAM_Debug"]),
    (
        "LayerUtility: PurgeVRAM",
        {"purge_cache": True, "purge_models": False},
        {"anything": "IMAGE"},
        [],
        ["VRAM_Debug"],
    ),
    ("easy showAnything", {}, {"anything": "IMAGE"}, ["IMAGE"], ["PreviewAny"]),
    ("easy int", {"value": 3}, {}, ["*"], ["PrimitiveInt"]),
    ("easy float", {"value": 0.5}, {}, ["*"], ["PrimitiveFloat"]),
    ("easy boolean", {"value": True}, {}, ["*"], ["PrimitiveBoolean"]),
    ("easy string", {"value": "x"}, {}, ["*"], ["PrimitiveStringMultiline"]),
    ("Int", {"Number": "81"}, {}, ["*"], ["PrimitiveInt"]),
    ("Float", {"Number": "0.5"}, {}, ["*"], ["PrimitiveFloat"]),
    ("String", {"String": "x"}, {}, ["*"], ["PrimitiveStringMultiline"]),
    ("Text Multiline", {"text": "A prompt"}, {}, ["*"], ["PrimitiveStringMultiline"]),
    ("Text String", {"text": "a", "text_b": "b"}, {}, ["*", "*"], ["PrimitiveStringMultiline"] * 2),
    (
        "Text Concatenate",
        {"delimiter": " ", "clean_whitespace": "false"},
        dict.fromkeys(["text_a", "text_b", "text_c", "text_d"], "STRING"),
        ["*"],
        ["StringConcatenate"] * 3,
    ),
    (
        "Text Concatenate",
        {"delimiter": "\\n", "clean_whitespace": "true"},
        {"text_a": "STRING", "text_b": "STRING"},
        ["*"],
        ["StringConcatenate"],
    ),
    ("Upscale Model Loader", {"model_name": "wanmetal-marker.pth"}, {}, ["UPSCALE_MODEL"], ["UpscaleModelLoader"]),
    ("Image Aspect Ratio", {}, {"image": "IMAGE"}, ["*"], ["GetImageSize", "ComfyMathExpression"]),
    ("Int to String", {"use_commas": "false"}, {"int_": "INT"}, ["*"], ["PrimitiveInt", "PreviewAny"]),
    (
        "Resize Image for SDXL",
        {"upscale_method": "nearest-exact", "crop": "disabled"},
        {"image": "IMAGE"},
        ["IMAGE"],
        ["ImageScaleToTotalPixels"],
    ),
    (
        "Mix Color By Mask",
        {"r": 210, "g": 255, "b": 255},
        {"image": "IMAGE", "mask": "IMAGE"},
        ["IMAGE"],
        ["ImageToMask", "GetImageSize", "EmptyImage", "ImageCompositeMasked"],
    ),
    (
        "LayerColor: BrightnessContrastV2",
        {"brightness": 1, "contrast": 1.04, "saturation": 1.04},
        {"image": "IMAGE"},
        ["IMAGE"],
        ["AdjustBrightness", "AdjustContrast"],
    ),
    (
        "RMBG",
        {"model": "INSPYRENET", "invert_output": False, "background": "Color", "background_color": "#222222"},
        {"image": "IMAGE"},
        ["IMAGE", "MASK"],
        [
            "LoadBackgroundRemovalModel",
            "RemoveBackground",
            "GetImageSize",
            "EmptyImage",
            "ImageCompositeMasked",
        ],
    ),
    (
        "RMBG",
        {"model": "RMBG-2.0", "invert_output": False, "background": "Alpha"},
        {"image": "IMAGE"},
        ["IMAGE"],
        ["LoadBackgroundRemovalModel", "RemoveBackground", "InvertMask", "JoinImageWithAlpha"],
    ),
    (
        "LayerMask: SegmentAnythingUltra V2",
        {"threshold": 0.3, "prompt": "horse"},
        {"image": "IMAGE"},
        ["IMAGE", "MASK"],
        ["CheckpointLoaderSimple", "CLIPTextEncode", "SAM3_Detect", "InvertMask", "JoinImageWithAlpha"],
    ),
    (
        "Sam2Segmentation",
        {"keep_model_loaded": False, "individual_objects": False},
        {"image": "IMAGE", "sam2_model": "MODEL"},
        ["MASK"],
        ["CheckpointLoaderSimple", "CLIPTextEncode", "SAM3_VideoTrack", "SAM3_TrackToMask"],
    ),
    ("DownloadAndLoadSAM2Model", {"model": "sam2.1.safetensors"}, {}, [], []),
    (
        "ClownsharKSampler_Beta",
        {**MODEL, "steps_to_run": -1, "sampler_mode": "standard"},
        SAMPLER,
        ["LATENT"],
        ["KSampler"],
    ),
    (
        "ClownsharKSampler_Beta",
        {**MODEL, "steps_to_run": 12, "sampler_mode": "standard"},
        SAMPLER,
        ["LATENT"],
        ["KSamplerAdvanced"],
    ),
]


def api_of(kind: str, values: dict[str, Any], links: dict[str, str], outputs: list[str]) -> dict[str, Any]:
    """A graph in API format around one node."""
    api = copy.deepcopy(BEFORE)
    api["20"] = {"class_type": kind, "inputs": {**values, **{name: GIVEN[one] for name, one in links.items()}}}
    for slot, one in enumerate(outputs):
        end, inputs, name = AFTER.get(one, ("PreviewAny", {}, "source"))
        api[str(30 + slot)] = {"class_type": end, "inputs": {**inputs, name: ["20", slot]}}
        if one == "LATENT":
            api[str(50 + slot)] = {"class_type": "PreviewImage", "inputs": {"images": [str(30 + slot), 0]}}
    if not outputs:
        api["30"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    return api


def browser_of(kind: str, values: dict[str, Any], links: dict[str, str], outputs: list[str]) -> dict[str, Any]:
    """The same graph as the browser saves it, with values in the order of the old widgets."""
    graph = to_browser(api_of(kind, values, links, outputs), HERE)
    node = next(one for one in graph["nodes"] if one["type"] == kind)
    names = table()[kind]["values"]
    node["widgets_values"] = [values.get(name, "fixed" if name is None else None) for name in names]
    while node["widgets_values"] and node["widgets_values"][-1] is None:  # as an older version has saved it
        node["widgets_values"].pop()
    node["inputs"] = [slot for slot in node["inputs"] if slot["name"] in links]
    for index, slot in enumerate(node["inputs"]):
        next(link for link in graph["links"] if link[0] == slot["link"])[4] = index
    return graph


def in_a_subgraph(graph: dict[str, Any]) -> dict[str, Any]:
    """The same graph inside a subgraph."""
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    inner = {
        "id": "11111111-2222-3333-4444-555555555555",
        "name": "Inside",
        "nodes": graph["nodes"],
        "links": [dict(zip(keys, link, strict=True)) for link in graph["links"]],
        "inputs": [],
        "outputs": [],
        "state": {"lastNodeId": graph["last_node_id"], "lastLinkId": graph["last_link_id"]},
    }
    node = {"id": 1, "type": inner["id"], "mode": 0, "inputs": [], "outputs": [], "widgets_values": []}
    return {"nodes": [node], "links": [], "definitions": {"subgraphs": [inner]}}


def plain(api: dict[str, Any]) -> list[Any]:
    """A graph in API format without its ids: links become what they lead to."""

    def opened(id_: str) -> Any:
        node = api[id_]
        inputs = {
            name: [opened(value[0]), value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        return [node["class_type"], sorted(inputs.items(), key=lambda item: item[0])]

    return sorted((opened(id_) for id_ in api), key=repr)


@pytest.mark.parametrize(("kind", "values", "links", "outputs", "new"), SHOWN)
def test_it_is_replaced_in_every_format(
    kind: str, values: dict[str, Any], links: dict[str, str], outputs: list[str], new: list[str]
) -> None:
    api, rows = replace(api_of(kind, values, links, outputs), HERE, set(HERE))
    assert [(row.old, list(row.new)) for row in rows] == [(kind, new)]
    assert check.unknown_types(api, HERE) == []
    assert check.problems(api, HERE) == []

    graph = browser_of(kind, values, links, outputs)
    before = copy.deepcopy(graph)
    changed, again = replace(graph, HERE, set(HERE))
    assert graph == before, "what was given stays as it is"
    assert [[*row.new] for row in again] == [new]
    assert plain(to_api(changed, HERE)) == plain(api)
    note = next(node for node in changed["nodes"] if node.get("title") == NOTE)
    assert all(str(row) in note["widgets_values"][0] for row in again)

    inside, _unused = replace(in_a_subgraph(browser_of(kind, values, links, outputs)), HERE, set(HERE))
    assert plain(to_api(inside, HERE)) == plain(api)
    assert "the subgraph Inside" in inside["nodes"][-1]["widgets_values"][0]


def test_each_entry_of_the_table_is_shown() -> None:
    aliases = {"LayerUtility: PurgeVRAM V2", "LayerColor: Brightness Contrast V2", "BiRefNetRMBG"}
    aliases |= {"LayerMask: SegmentAnythingUltra V3", "ImageListToBatch+"}
    assert set(table()) - aliases == {kind for kind, *_unused in SHOWN}


def test_numbers_and_colours_are_converted() -> None:
    api, _unused = replace(api_of("Int", {"Number": "81"}, {}, ["*"]), HERE, set(HERE))
    assert api["20"]["inputs"] == {"value": 81}
    shown = next(one for one in SHOWN if one[0] == "Mix Color By Mask")
    api, _unused = replace(api_of(*shown[:4]), HERE, set(HERE))
    assert [node["inputs"]["color"] for node in api.values() if node["class_type"] == "EmptyImage"] == [0xD2FFFF]


def test_what_is_here_stays() -> None:
    api = api_of("RIFE VFI", {"multiplier": 2}, {"frames": "IMAGE"}, ["IMAGE"])
    assert replace(api, HERE, {*HERE, "RIFE VFI"}) == (api, [])


def test_without_what_takes_its_place_it_stays_or_is_replaced_otherwise() -> None:
    api = api_of("RIFE VFI", {"multiplier": 2}, {"frames": "IMAGE"}, ["IMAGE"])
    assert replace(api, HERE, set(HERE) - {"FrameInterpolate"}) == (api, [])
    api, rows = replace(
        api_of("easy cleanGpuUsed", {}, {"anything": "IMAGE"}, ["IMAGE"]), HERE, set(HERE) - {"VRAM_Debug"}
    )
    assert api["30"]["inputs"]["images"] == ["1", 0]
    assert [row.new for row in rows] == [()]
    api, rows = replace(
        api_of("ImageListToImageBatch", {}, {"images": "IMAGE"}, ["IMAGE"]), HERE, set(HERE) - {"ImageListToBatch+"}
    )
    assert [row.new for row in rows] == [("RebatchImages",)]
    assert "one size" in rows[0].changes


@pytest.mark.parametrize(
    ("kind", "values", "links", "outputs"),
    [
        ("Image Aspect Ratio", {}, {"image": "IMAGE"}, ["*"] * 5),
        ("RMBG", {"background": "Color", "invert_output": True}, {"image": "IMAGE"}, ["IMAGE"]),
        ("ClownsharKSampler_Beta", {**MODEL, "steps_to_run": -1, "sampler_mode": "unsample"}, SAMPLER, ["LATENT"]),
        ("Int to String", {"use_commas": "true"}, {"int_": "INT"}, ["*"]),
    ],
)
def test_what_nothing_can_stand_for_stays(
    kind: str, values: dict[str, Any], links: dict[str, str], outputs: list[str]
) -> None:
    api = api_of(kind, values, links, outputs)
    assert replace(api, HERE, set(HERE)) == (api, [])
    assert check.unknown_types(api, HERE) == [kind]


def test_a_second_sampler_goes_on_where_the_first_stops() -> None:
    api = api_of("ClownsharKSampler_Beta", {**MODEL, "steps_to_run": 12, "sampler_mode": "standard"}, SAMPLER, [])
    rest = {**MODEL, "steps_to_run": -1, "sampler_mode": "resample"}
    given = {**{name: GIVEN[one] for name, one in SAMPLER.items()}, "latent_image": ["20", 0]}
    api["21"] = {"class_type": "ClownsharKSampler_Beta", "inputs": {**rest, **given}}
    api["31"] = {"class_type": "VAEDecode", "inputs": {"samples": ["21", 1], "vae": ["8", 0]}}
    api["32"] = {"class_type": "PreviewImage", "inputs": {"images": ["31", 0]}}
    found, _unused = replace(api, HERE, set(HERE))
    first, second = found["20"]["inputs"], found["21"]["inputs"]
    assert (first["start_at_step"], first["end_at_step"], first["add_noise"]) == (0, 12, "enable")
    assert (second["start_at_step"], second["add_noise"], second["latent_image"]) == (12, "disable", ["20", 0])
    assert check.problems(found, HERE) == []


def test_what_is_lost_is_said() -> None:
    api = api_of("RIFE VFI", {"multiplier": 2}, {"frames": "IMAGE"}, ["IMAGE"])
    api["20"]["inputs"]["optional_interpolation_states"] = ["7", 0]
    _unused, rows = replace(api, HERE, set(HERE))
    assert "its optional_interpolation_states has no place" in str(rows[0])


def test_muted_and_bypassed_nodes_stay_so() -> None:
    graph = browser_of("RIFE VFI", {"ckpt_name": "x", "multiplier": 2}, {"frames": "IMAGE"}, ["IMAGE"])
    next(node for node in graph["nodes"] if node["type"] == "RIFE VFI")["mode"] = 4
    changed, _unused = replace(graph, HERE, set(HERE))
    api = to_api(changed, HERE)
    end = next(node for node in api.values() if node["class_type"] == "PreviewImage")
    assert api[end["inputs"]["images"][0]]["class_type"] == "LoadImage"


def test_numbers_of_another_version_get_their_defaults() -> None:
    graph = to_browser(api_of("Int", {"Number": "1"}, {}, ["*"]), HERE)
    node = next(one for one in graph["nodes"] if one["type"] == "EmptyLatentImage")
    node["widgets_values"] = [64, "", 1]
    changed, rows = replace(graph, HERE, set(HERE))
    api = to_api(changed, HERE)
    assert next(one for one in api.values() if one["class_type"] == "EmptyLatentImage")["inputs"]["height"] == 512
    assert any("height got the default" in str(row) for row in rows)


def test_links_of_use_everywhere_lead_to_what_takes_its_place() -> None:
    graph = browser_of("Resize Image for SDXL", {"upscale_method": "area"}, {"image": "IMAGE"}, ["IMAGE"])
    node = next(one for one in graph["nodes"] if one["type"] == "Resize Image for SDXL")
    number = node["inputs"][0]["link"]
    node["inputs"][0]["link"] = None
    graph["links"] = [link for link in graph["links"] if link[0] != number]
    graph["nodes"][0]["outputs"][0]["links"].remove(number)
    link = {
        "downstream": 20,
        "downstream_slot": 0,
        "upstream": 1,
        "upstream_slot": 0,
        "controller": 99,
        "type": "IMAGE",
    }
    graph["extra"] = {"ue_links": [link]}
    changed, _unused = replace(graph, HERE, set(HERE))
    assert to_api(changed, HERE)["20"]["inputs"]["image"] == ["1", 0]


# -- the format of the API, as the browser saves it


def test_a_graph_of_the_api_opens_in_the_browser() -> None:
    api = api_of("Text Multiline", {"text": "of a type that is not known"}, {}, ["*"])
    api["1"]["_meta"] = {"title": "My picture"}
    graph = to_browser(api, HERE)
    assert graph["nodes"][0]["title"] == "My picture"
    assert len({tuple(node["pos"]) for node in graph["nodes"]}) == len(graph["nodes"])
    assert plain(to_api(graph, HERE)) == plain(api)


def test_ids_of_subgraphs_become_numbers() -> None:
    api = {"5:3": BEFORE["1"], "7": {"class_type": "PreviewImage", "inputs": {"images": ["5:3", 0]}}}
    graph = to_browser(api, HERE)
    assert [node["id"] for node in graph["nodes"]] == [1, 2]
    assert to_api(graph, HERE)["2"]["inputs"]["images"] == ["1", 0]


def test_what_the_browser_has_no_place_for_is_refused() -> None:
    api = {"1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "more": 1}}}
    with pytest.raises(ConversionError, match="no place for the input more of node 1"):
        to_browser(api, HERE)


@pytest.mark.parametrize(
    "strange",
    [
        {"nodes": [None]},
        {"nodes": [{"id": 1, "type": ["x"]}]},
        {"nodes": [{"id": 1, "type": "x", "inputs": 5}], "links": []},
        {"nodes": [], "links": [5]},
        {"nodes": [], "definitions": [1]},
        {"1": {"class_type": "RIFE VFI", "inputs": "x"}},
        {"1": {"class_type": "RIFE VFI"}},
    ],
)
def test_what_is_no_workflow_stays(strange: dict[str, Any]) -> None:
    assert replace(strange, HERE, HERE) == (strange, [])
