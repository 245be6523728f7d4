"""The shipped workflows: current, accepted by the recorded node types, of models that there are; and who gets which."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils import workflow_check, workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.user_files import pack, unpack
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks, workflows
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import plan

from tools.workflows.__main__ import made

SCHEMAS = workflow_schemas.recorded()
CATALOGUE = locks.load("models")
PACKS = locks.load("custom_nodes")["packs"]
ALL_PACKS = list(PACKS)
INDEX = workflows.index()
FLAGSHIP = "Wrapper-SelfForcing-ImageToVideo-60FPS"


def test_all_files_are_made_from_the_sources_as_they_are() -> None:
    stale = [file.name for file, text in made().items() if not file.is_file() or file.read_text() != text]
    assert not stale, "run python -m tools.workflows"


@pytest.mark.parametrize("file", sorted(workflow_schemas.FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_schemas_are_of_the_pinned_commits(file: Path) -> None:
    pins = {name: pack["commit"] for name, pack in PACKS.items()}
    pins[workflow_schemas.CORE] = locks.load("upstream")["comfyui"]["commit"]
    assert json.loads(file.read_text())["commit"] == pins[file.stem], "record them anew with tools/schemas.py"


@pytest.mark.parametrize("name", INDEX)
def test_comfyui_would_take_it(name: str) -> None:
    api = workflows.load(name, "api")
    assert workflow_check.problems(api, SCHEMAS) == []
    needs = workflows.needs(api, SCHEMAS, CATALOGUE)
    assert needs.unknown == ()
    assert needs.sets
    prefixes = [node["inputs"]["filename_prefix"] for node in api.values() if "filename_prefix" in node["inputs"]]
    assert prefixes == [f"wanmetal-{name}"], "one output, in no folder of its own"


@pytest.mark.parametrize("name", INDEX)
def test_the_release_promises_the_node_types_of_packs(name: str) -> None:
    used = {node["class_type"] for node in workflows.load(name, "api").values()}
    for kind in used:
        pack = SCHEMAS[kind].pack
        assert pack == workflow_schemas.CORE or kind in PACKS[pack]["node_types"]


@pytest.mark.parametrize("name", INDEX)
def test_settings_name_one_node_and_its_input(name: str) -> None:
    api = workflows.load(name, "api")
    for setting, (title, entry) in INDEX[name]["settings"].items():
        found = [node["inputs"] for node in api.values() if node["_meta"]["title"] == title]
        assert len(found) == 1, f"{setting}: nodes named {title}"
        assert not isinstance(found[0][entry], list), f"{setting} is a link"


def test_the_flagship_takes_all_that_a_request_may_set() -> None:
    asked = {
        "image",
        "positive_prompt",
        "negative_prompt",
        "width",
        "height",
        "num_frames",
        "steps",
        "cfg_scale",
        "shift",
    }
    asked |= {"seed", "lora_strength", "interpolation_multiplier", "final_frame_rate"}
    assert asked <= INDEX[FLAGSHIP]["settings"].keys()


@pytest.mark.parametrize("name", INDEX)
def test_nodes_do_not_lie_on_each_other(name: str) -> None:
    nodes = workflows.load(name, "ui")["nodes"]
    boxes = [(*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in nodes]
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    assert any(node["type"] == "MarkdownNote" and "What to change" in node["widgets_values"][0] for node in nodes)


def changed(**inputs: Any) -> dict[str, Any]:
    api = copy.deepcopy(workflows.load("Native-TextToVideo", "api"))
    sampler = next(node for node in api.values() if node["class_type"] == "KSampler")
    for name, value in inputs.items():
        if value is None:
            del sampler["inputs"][name]
        else:
            sampler["inputs"][name] = value
    return api


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"steps": 0}, "steps must be 1 to 10000, found 0"),
        ({"steps": "20"}, "steps must be a number, found '20'"),
        ({"steps": 2.5}, "steps must be a number, found 2.5"),
        ({"cfg": True}, "cfg must be a number, found True"),
        ({"sampler_name": "magic"}, "found 'magic'"),
        ({"model": None}, "the input model is missing"),
        ({"model": 3}, "model must be linked, found 3"),
        ({"model": ["99", 0]}, "linked to node 99, which is not there"),
        ({"model": ["2", 4]}, "linked to output 4 of UNETLoader, which has 1"),
        ({"positive": ["2", 0]}, "positive wants CONDITIONING, and is linked to MODEL of UNETLoader"),
        ({"colour": "red"}, "KSampler has no input colour"),
    ],
)
def test_what_comfyui_would_refuse_is_named(inputs: dict[str, Any], message: str) -> None:
    found = workflow_check.problems(changed(**inputs), SCHEMAS)
    assert any(message in line and "Sampler" in line for line in found), found


def test_a_type_that_is_not_known_and_a_graph_without_end() -> None:
    found = workflow_check.problems({"1": {"class_type": "Magic", "inputs": {}}}, SCHEMAS)
    assert found == ["node 1 (Magic): the node type Magic is not known", "nothing is saved or shown at its end"]


def test_a_model_that_the_catalogue_does_not_have_is_named() -> None:
    api = {"1": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "mine.safetensors"}}}
    assert workflows.needs(api, SCHEMAS, CATALOGUE).unknown == ("mine.safetensors",)


SETS = ["wan21-i2v-720p", "wan21-t2v", "optimisation-loras", "interpolation"]


def host(sets: list[str], profile: str, packs: list[str], extra: dict[str, str] | None = None) -> dict[str, Any]:
    return workflows.for_host(plan(CATALOGUE, sets=sets, profile=profile)["files"], packs, CATALOGUE, extra or {})


def test_a_host_gets_what_it_has_the_models_and_packs_for() -> None:
    given = host(SETS, "fp8", ALL_PACKS)
    assert {FLAGSHIP, "Native-TextToVideo", "Wrapper-SelfForcing-TextToVideo-60FPS"} <= set(given["names"])
    assert "Wan22-TextToVideo" in given["left_out"]
    assert "lacks the model wan22-t2v-high-noise" in given["left_out"]["Wan22-TextToVideo"]
    assert set(given["names"]) | set(given["left_out"]) == set(INDEX)
    assert "input/wanmetal-example.png" in unpack(given["archive"])


def test_without_packs_only_workflows_of_comfyuis_own_nodes() -> None:
    given = host(SETS, "fp8", [])
    assert given["names"] == ["Native-TextToVideo", "Native-VideoToVideo"]
    assert "lacks the node pack" in given["left_out"][FLAGSHIP]


@pytest.mark.parametrize(
    ("profile", "model"),
    [
        ("small", "wan2.1_t2v_1.3B_fp16.safetensors"),
        ("fp8", "wan2.1_t2v_14B_fp8_scaled.safetensors"),
        ("full", "wan2.1_t2v_14B_bf16.safetensors"),
    ],
)
def test_a_workflow_names_the_file_that_the_host_has(profile: str, model: str) -> None:
    files = unpack(host(["wan21-t2v"], profile, [])["archive"])
    text = json.loads(files["user/default/workflows/Native-TextToVideo.json"])
    loader = next(node for node in text["nodes"] if node["type"] == "UNETLoader")
    assert loader["widgets_values"][0] == model


@pytest.mark.parametrize("profile", ["small", "fp8", "full"])
def test_with_all_sets_nothing_essential_is_left_out(profile: str) -> None:
    given = host(list(CATALOGUE["sets"]), profile, ALL_PACKS)
    functions = {"Native-TextToVideo-1.3B", "Native-ImageToVideo", "Native-StartEndFrames", "Wan22-5B"}
    if profile == "full":
        functions = set(INDEX) - {"SDXL-Helper-FirstFrame"}  # whose checkpoint is the operator's choice
    if profile == "fp8":
        functions |= {FLAGSHIP, "Wrapper-VACE-FiveInOne", "Wan22-ImageToVideo", "Native-VideoExtension"}
    assert functions - {"Wan22-5B"} <= set(given["names"])


def test_any_checkpoint_will_do_for_the_sdxl_helper() -> None:
    files = [*plan(CATALOGUE, sets=["sdxl-helper"], profile="fp8")["files"]]
    assert "SDXL-Helper-FirstFrame" in workflows.for_host(files, [], CATALOGUE, {})["left_out"]
    files.append({"id": "civitai-1", "folder": "checkpoints"})
    assert "SDXL-Helper-FirstFrame" in workflows.for_host(files, [], CATALOGUE, {})["names"]


def test_a_host_without_models_gets_nothing_but_the_operators_own() -> None:
    assert host([], "fp8", ALL_PACKS)["archive"] == pack({})
    given = host([], "fp8", ALL_PACKS, {"/home/me/mine.json": '{"nodes": []}'})
    assert list(unpack(given["archive"])) == ["user/default/workflows/mine.json"]


@pytest.mark.parametrize(("text", "message"), [("{", "no JSON"), ('{"1": {}}', "not in the format")])
def test_what_is_no_workflow_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        host([], "fp8", [], {"mine.json": text})
