"""The shipped workflows: current, accepted by the recorded node types, of models that there are; and who gets which."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.user_files import pack, unpack
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import check as workflow_check
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError, to_api
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.replace import table as replacements
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks, workflows
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import plan

from tools.workflows.__main__ import made

SCHEMAS = workflow_schemas.recorded()
CATALOGUE = locks.load("models")
PACKS = locks.load("custom_nodes")["packs"]
ALL_PACKS = {name: {"commit": entry["commit"], "node_types": entry["node_types"]} for name, entry in PACKS.items()}
COMFYUI = locks.load("upstream")["comfyui"]["commit"]
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
    api = workflows.load_api(name)
    assert workflow_check.problems(api, SCHEMAS, strict=True) == []
    needs = workflows.needs(api, SCHEMAS, CATALOGUE)
    assert needs.unknown == ()
    assert needs.sets
    prefixes = [node["inputs"]["filename_prefix"] for node in api.values() if "filename_prefix" in node["inputs"]]
    assert prefixes == [f"wanmetal-{name}"], "one output, in no folder of its own"


@pytest.mark.parametrize("name", INDEX)
def test_the_release_promises_the_node_types_of_packs(name: str) -> None:
    used = {node["class_type"] for node in workflows.load_api(name).values()}
    for kind in used:
        pack = SCHEMAS[kind].pack
        assert pack == workflow_schemas.CORE or kind in PACKS[pack]["node_types"]


@pytest.mark.parametrize("name", INDEX)
def test_settings_name_one_node_and_its_input(name: str) -> None:
    api = workflows.load_api(name)
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
    nodes = workflows.load(name)["nodes"]
    boxes = [(*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in nodes]
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    assert any(node["type"] == "MarkdownNote" and "What to change" in node["widgets_values"][0] for node in nodes)


def changed(**inputs: Any) -> dict[str, Any]:
    api = workflows.load_api("Native-TextToVideo")
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
        ({"steps": "0"}, "steps must be 1 to 10000, found 0"),
        ({"steps": "2.5"}, "steps must be a whole number, found '2.5'"),
        ({"steps": {"__value__": [20]}}, "steps must be a whole number, found [20]"),
        ({"seed": {"x": 1}}, "seed must be a whole number, found {'x': 1}"),
        ({"cfg": "much"}, "cfg must be a number, found 'much'"),
        ({"cfg": float("inf")}, "cfg must be 0.0 to 100.0, found inf"),
        ({"cfg": float("nan")}, "cfg must be a number, found nan"),
        ({"cfg": "nan"}, "cfg must be a number, found 'nan'"),
        ({"sampler_name": "magic"}, "found 'magic'"),
        ({"model": None}, "the input model is missing"),
        ({"model": 3}, "model must be linked, found 3"),
        ({"model": ["99", 0]}, "linked to node 99, which is not there"),
        ({"model": ["2", 4]}, "linked to output 4 of UNETLoader, which has 1"),
        ({"positive": ["2", 0]}, "positive wants CONDITIONING, and is linked to MODEL of UNETLoader"),
    ],
)
def test_what_comfyui_would_refuse_is_named(inputs: dict[str, Any], message: str) -> None:
    found = workflow_check.problems(changed(**inputs), SCHEMAS)
    assert any(message in line and "Sampler" in line for line in found), found


@pytest.mark.parametrize(
    "inputs",
    [
        {"steps": "20", "cfg": "0.5"},
        {"steps": 20.0, "cfg": True, "denoise": " 1 "},
        {"steps": True, "seed": "7"},
        {"steps": {"__value__": "20"}, "sampler_name": {"__value__": "euler"}},
    ],
)
def test_what_comfyui_converts_is_taken(inputs: dict[str, Any]) -> None:
    assert workflow_check.problems(changed(**inputs), SCHEMAS) == []


@pytest.mark.parametrize("kind", [None, 5, ["SaveImage"], {}])
def test_a_node_whose_type_is_no_text_is_refused(kind: Any) -> None:
    for graph in ({"7": {"class_type": kind, "inputs": {}}}, {"nodes": [{"id": 7, "type": kind}]}):
        with pytest.raises(ConversionError):
            workflow_check.read(graph, SCHEMAS)


@pytest.mark.parametrize("about", ["text", ["a"], 5, {"title": ["a"]}])
def test_what_is_said_of_a_node_is_for_people(about: Any) -> None:
    api = {id_: {**one, "_meta": about} for id_, one in changed(steps="many").items()}
    assert len(workflow_check.problems(api, SCHEMAS)) == 1


@pytest.mark.parametrize("value", ["", None, 0, "no", {"__value__": []}])
def test_any_value_is_true_or_false(value: Any) -> None:
    known = {"Switch": workflow_schemas.from_object_info(SWITCH)["Switch"]}
    api = {"1": {"class_type": "Switch", "inputs": {"on": value, "text": value}}}
    assert workflow_check.problems(api, known) == []


SWITCH = {"Switch": {"input": {"required": {"on": ["BOOLEAN"], "text": ["STRING"]}}, "output": [], "output_node": True}}


def test_what_comfyui_passes_over_is_named_to_those_who_ask() -> None:
    api = changed(colour="red", positive=["99", 0])
    loose = {"class_type": "KSampler", "inputs": {}}
    for strict in (False, True):
        found = workflow_check.problems({**api, "loose": loose}, SCHEMAS, strict=strict)
        assert len([line for line in found if "linked to node 99" in line]) == 1
        assert any("KSampler has no input colour" in line for line in found) is strict
        assert ("node loose (KSampler): the input model is missing" in found) is strict
    found = workflow_check.problems({**changed(), "loose": {"class_type": "Magic", "inputs": {}}}, SCHEMAS)
    assert found == ["node loose (Magic): the node type Magic is not known"]


def test_a_type_that_is_not_known_and_a_graph_without_end() -> None:
    found = workflow_check.problems({"1": {"class_type": "Magic", "inputs": {}}}, SCHEMAS)
    assert found == ["node 1 (Magic): the node type Magic is not known", "nothing is saved or shown at its end"]


def test_a_model_that_the_catalogue_does_not_have_is_named() -> None:
    api = {"1": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "mine.safetensors"}}}
    assert workflows.needs(api, SCHEMAS, CATALOGUE).unknown == ("mine.safetensors",)


SETS = ["wan21-i2v-720p", "wan21-t2v", "optimisation-loras", "interpolation"]


def host(
    sets: list[str], profile: str, packs: dict[str, Any], extra: dict[str, str] | None = None, comfyui: str = COMFYUI
) -> dict[str, Any]:
    files = plan(CATALOGUE, sets=sets, profile=profile)["files"]
    return workflows.for_host(files, packs, CATALOGUE, extra or {}, comfyui=comfyui, profile=profile)


def test_a_host_gets_what_it_has_the_models_and_packs_for() -> None:
    given = host(SETS, "fp8", ALL_PACKS)
    assert {FLAGSHIP, "Native-TextToVideo", "Wrapper-SelfForcing-TextToVideo-60FPS"} <= set(given["names"])
    assert "Wan22-TextToVideo" in given["left_out"]
    assert "lacks the model wan22-t2v-high-noise" in given["left_out"]["Wan22-TextToVideo"]
    assert set(given["names"]) | set(given["left_out"]) == set(INDEX)
    assert "input/wanmetal-example.png" in unpack(given["archive"])


def test_without_packs_only_workflows_of_comfyuis_own_nodes() -> None:
    given = host(SETS, "fp8", {})
    assert given["names"] == ["Native-SelfForcing-TextToVideo-60FPS", "Native-TextToVideo", "Native-VideoToVideo"]
    assert "lacks the node pack" in given["left_out"][FLAGSHIP]


def test_the_practice_copy_gets_workflows_of_its_own_nodes() -> None:
    given = host(SETS, "fp8", {}, comfyui=locks.load("upstream")["practice"]["commit"])
    assert given["names"] == ["Native-TextToVideo", "Native-VideoToVideo"]
    assert given["problems"] == []
    why = given["left_out"]["Native-SelfForcing-TextToVideo-60FPS"]
    assert why == "needs FrameInterpolationModelLoader, FrameInterpolate, which this older ComfyUI does not have"


def test_the_practice_copy_has_schemas_of_its_own() -> None:
    practice = locks.load("upstream")["practice"]["commit"]
    folder = workflow_schemas.recorded_in(practice)
    assert workflow_schemas.commits(folder) == {workflow_schemas.CORE: practice}
    assert "FrameInterpolate" not in workflow_schemas.recorded(folder)
    for name in given_names(practice):
        api = to_api(workflows.load(name), workflow_schemas.recorded(folder))
        assert workflow_check.problems(api, workflow_schemas.recorded(folder), strict=True) == [], name


def given_names(comfyui: str) -> list[str]:
    """What a host with every model gets."""
    return list(host(list(CATALOGUE["sets"]), "fp8", {}, comfyui=comfyui)["names"])


@pytest.mark.parametrize(
    ("profile", "model"),
    [
        ("small", "wan2.1_t2v_1.3B_fp16.safetensors"),
        ("fp8", "wan2.1_t2v_14B_fp8_scaled.safetensors"),
        ("full", "wan2.1_t2v_14B_bf16.safetensors"),
    ],
)
def test_a_workflow_names_the_file_that_the_host_has(profile: str, model: str) -> None:
    files = unpack(host(["wan21-t2v"], profile, {})["archive"])
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
    assert "SDXL-Helper-FirstFrame" in workflows.for_host(files, {}, CATALOGUE, {})["left_out"]
    files.append({"id": "civitai-1", "folder": "checkpoints"})
    assert "SDXL-Helper-FirstFrame" in workflows.for_host(files, {}, CATALOGUE, {})["names"]


def test_an_operator_s_catalogue_may_lack_what_workflows_need() -> None:
    name, entry = next((name, entry) for name, entry in workflows.index().items() if entry["models"])
    needed = [ids[0] for ids in entry["models"]]
    choice = workflows.choose(entry, name, [], entry["packs"], {"files": {}})
    assert (choice.missing, choice.fits) == (tuple(needed), False)


def test_a_host_without_models_gets_nothing_but_the_operators_own() -> None:
    assert host([], "fp8", ALL_PACKS)["archive"] == pack({})
    given = host([], "fp8", ALL_PACKS, {"/home/me/mine.json": '{"nodes": []}'})
    files = unpack(given["archive"])
    assert list(files) == ["gallery/first.txt", "gallery/mine template.json", "user/default/workflows/mine.json"]
    assert files["gallery/first.txt"] == b"mine template\n"


@pytest.mark.parametrize(
    ("sets", "first"),
    [
        (["wan21-t2v-1.3b"], "Native TextToVideo 1.3B"),
        (["wan21-t2v-1.3b", "wan22-t2v", "wan22-optimisation-loras"], "Wan22 TextToVideo"),
        (["wan22-ti2v-5b", "wan21-t2v-1.3b"], "Wan22 5B"),
        (["wan21-flf2v"], "Native StartEndFrames"),
    ],
)
def test_the_page_begins_with_a_workflow_that_the_host_has(sets: list[str], first: str) -> None:
    files = unpack(host(sets, "fp8", {})["archive"])
    assert files["gallery/first.txt"].decode().strip() == first
    assert f"gallery/{first}.json" in files


def test_the_gallery_has_every_workflow_with_its_picture_under_names_of_its_own() -> None:
    own = dict.fromkeys(["/home/me/my-own.json", "/x/one.json"], '{"nodes": []}')
    given = host(list(CATALOGUE["sets"]), "full", ALL_PACKS, own)
    files = unpack(given["archive"])
    placed = {path.split("/")[-1]: data for path, data in files.items() if path.startswith("user/default/workflows/")}
    shown = {path.split("/")[-1]: data for path, data in files.items() if path.startswith("gallery/")}
    titles = {name.removesuffix(".json") for name in shown if name.endswith(".json")}
    assert {"my own", "one template"} <= titles
    assert not placed.keys() & shown.keys(), "a tab with the name of a file saves over it"
    assert {shown[f"{title}.json"] for title in titles} == set(placed.values())
    assert {name.removesuffix(".jpg") for name in shown if name.endswith(".jpg")} == titles - {"my own", "one template"}


def test_each_workflow_has_an_id_that_the_page_takes() -> None:
    ids = [uuid.UUID(workflows.load(name)["id"]) for name in INDEX]
    assert len(set(ids)) == len(INDEX)


def test_each_workflow_has_a_picture() -> None:
    pictures = {file.stem: file.read_bytes() for file in workflows.PICTURES.iterdir()}
    assert pictures.keys() == INDEX.keys()
    assert all(data.startswith(b"\xff\xd8\xff") and len(data) < 20_000 for data in pictures.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ('{"1": {}}', "neither nodes nor class types"),
        ('{"input": {"workflow": 1}}', "neither nodes nor class types"),
    ],
)
def test_what_is_no_workflow_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        host([], "fp8", {}, {"mine.json": text})


# -- what preflight says of them

EVERYTHING = plan(CATALOGUE, sets=list(CATALOGUE["sets"]), profile="full")["files"]


def saved(*nodes: dict[str, Any], links: Sequence[Any] = ()) -> str:
    named = [{"id": number, "inputs": [], **node} for number, node in enumerate(nodes, 1)]
    return json.dumps({"nodes": named, "links": list(links)})


PICTURE = {"type": "EmptyImage", "widgets_values": [64, 64, 1, 0]}
SAVED = {"type": "SaveImage", "inputs": [{"name": "images", "type": "IMAGE", "link": 1}], "widgets_values": ["x"]}
LINK = [1, 1, 0, 2, 0, "IMAGE"]
GOOD = saved(PICTURE, SAVED, links=[LINK])
OPENS = "mine.json opens, and nothing that it needs is known to be missing"


def told(text: str, packs: dict[str, Any] | None = None, comfyui: str = COMFYUI) -> dict[str, Any]:
    given = host([], "fp8", ALL_PACKS if packs is None else packs, {"/home/me/mine.json": text}, comfyui)
    return {key: given[key] for key in ("problems", "notes")}


def lacking(text: str, files: list[dict[str, Any]], profile: str = "fp8") -> list[str]:
    """What preflight says of the models of a workflow, on a host that has or will have some files."""
    given = workflows.for_host(files, {}, CATALOGUE, {"mine.json": text}, comfyui=COMFYUI, profile=profile)
    assert given["problems"] == []
    return list(given["notes"])


@pytest.mark.parametrize("profile", ["small", "fp8", "full"])
def test_preflight_finds_nothing_wrong_with_the_shipped_ones(profile: str) -> None:
    given = host(list(CATALOGUE["sets"]), profile, ALL_PACKS)
    assert len(given["names"]) > 10
    assert (given["problems"], given["notes"]) == ([], [])


@pytest.mark.parametrize(
    ("text", "found", "fix"),
    [
        (
            saved({**PICTURE, "widgets_values": [0, 64, 1, 0]}, SAVED, links=[LINK]),
            "node 1 (EmptyImage): width must be 1 to 16384, found 0",
            "fix it in the browser",
        ),
        (saved(PICTURE, SAVED), "node 2 (SaveImage): the input images is missing", "fix it in the browser"),
        (
            saved(PICTURE, {**SAVED, "title": "End", "type": "SaveMagic"}, links=[LINK]),
            "node 2 (End): the node type SaveMagic",
            "name its pack in custom_nodes_extra, with SaveMagic under node_types",
        ),
        (saved(PICTURE), "nothing is saved or shown at its end", "fix it in the browser"),
        ('{"nodes": [{"id": 1}]}', "this is no workflow of ComfyUI's (KeyError: 'type')", "fix it in the browser"),
        (
            saved(
                {**PICTURE, "title": "{{ lookup('pipe', 'x') }}", "widgets_values": [0, 64, 1, 0]}, SAVED, links=[LINK]
            ),
            "node 1 ({ { lookup('pipe', 'x') }}): width must be 1 to 16384, found 0",
            "fix it in the browser",
        ),
    ],
)
def test_preflight_names_what_is_wrong_with_an_operators_workflow(text: str, found: str, fix: str) -> None:
    (problem,) = told(text)["problems"]
    assert (problem["kind"], problem["what"], problem["found"]) == ("workflows", "workflow /home/me/mine.json", found)
    assert fix in problem["fix"]
    assert "remove it from workflows_extra" in problem["fix"]


def test_preflight_counts_what_would_not_be_read_to_its_end() -> None:
    broken = {**SAVED, "inputs": []}
    found = [problem["found"] for problem in told(saved(*[broken] * 27))["problems"]]
    assert len(found) == 5
    assert found[-1] == "23 further things"


def with_node(name: str, **node: Any) -> str:
    """A shipped workflow with one node more."""
    workflow = workflows.load(name)
    workflow["nodes"].append({"id": 999, "inputs": [], "outputs": [], **node})
    return json.dumps(workflow)


def with_values(name: str, kind: str, **values: Any) -> str:
    """A shipped workflow with other values in the nodes of a type that saves them by name."""
    workflow = workflows.load(name)
    chosen = [node for node in workflow["nodes"] if node["type"] == kind]
    assert chosen
    for node in chosen:
        node["widgets_values"] |= values
    return json.dumps(workflow)


MULTI = saved(
    PICTURE,
    {
        "type": "ImageBatchMulti",
        "inputs": [{"name": f"image_{number}", "type": "IMAGE", "link": number} for number in (1, 2, 3)],
        "widgets_values": [3, None],
    },
    {**SAVED, "inputs": [{"name": "images", "type": "IMAGE", "link": 4}]},
    links=[*([number, 1, 0, 2, number - 1, "IMAGE"] for number in (1, 2, 3)), [4, 2, 0, 3, 0, "IMAGE"]],
)


@pytest.mark.parametrize(
    "text",
    [
        with_values("Wrapper-VideoToVideo", "VHS_LoadVideo", **{"choose video to upload": "image"}),
        with_values("Wrapper-VideoToVideo", "VHS_LoadVideo", video="x.mp4 [output]", of_tomorrow=1),
        MULTI,
        with_node("Native-TextToVideo", type="KSampler", widgets_values=[]),
        with_node("Native-TextToVideo", type="Fast Groups Muter (rgthree)", widgets_values=[True]),
        with_node("Native-TextToVideo", type="workflow>My group", widgets_values=["x", 1]),
        saved(PICTURE, {**SAVED, "type": "workflow>My group"}, links=[LINK]),
        saved({"type": "VHS_LoadImages", "widgets_values": {"directory": "mine"}}, SAVED, links=[LINK]),
    ],
    ids=["button", "unknown input", "multi", "loose", "browser only", "group", "group at the end", "folder"],
)
def test_what_comfyui_takes_does_not_stop_a_deploy(text: str) -> None:
    assert told(text)["problems"] == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("VHS_LoadVideo", "video"),
        ("VHS_LoadVideoFFmpeg", "video"),
        ("VHS_LoadAudioUpload", "audio"),
        ("VHS_LoadImages", "directory"),
    ],
)
def test_files_that_a_loader_looks_for_itself_are_no_fixed_choice(kind: str, name: str) -> None:
    asked = {"input": {"required": {name: [["one.mp4"]], "format": [["a", "b"]]}}, "output": []}
    read = workflow_schemas.from_object_info({kind: asked})[kind]
    assert [(one.name, one.choices) for one in read.inputs] == [(name, None), ("format", ("a", "b"))]
    recorded = SCHEMAS[kind].input(name)
    assert recorded is not None
    assert recorded.choices is None


SAVED_BY_KJ = saved(
    PICTURE,
    {"type": "ImageResizeKJv2", "inputs": [{"name": "image", "type": "IMAGE", "link": 1}], "widgets_values": [-1] * 8},
    {**SAVED, "inputs": [{"name": "images", "type": "IMAGE", "link": 2}]},
    links=[LINK, [2, 2, 0, 3, 0, "IMAGE"]],
)


def test_a_node_of_a_pack_that_the_host_does_not_get() -> None:
    (problem,) = told(SAVED_BY_KJ, {})["problems"]
    assert problem["found"] == "node 2 (ImageResizeKJv2): the node type ImageResizeKJv2"
    assert problem["needed"] == "the node pack ComfyUI-KJNodes, which has it"
    assert "set wanmetal_variant: wan" in problem["fix"]
    whole = json.dumps(workflows.load("Wrapper-VideoToVideo"))
    needed = {problem["needed"] for problem in told(whole, {})["problems"]}
    assert needed == {f"the node pack {name}, which has it" for name in INDEX["Wrapper-VideoToVideo"]["packs"]}


def test_of_another_commit_it_is_not_known_what_its_nodes_take() -> None:
    assert any("width must be" in problem["found"] for problem in told(SAVED_BY_KJ)["problems"])
    moved = {**ALL_PACKS, "ComfyUI-KJNodes": {**ALL_PACKS["ComfyUI-KJNodes"], "commit": "0" * 40}}
    assert told(SAVED_BY_KJ, moved)["problems"] == []
    assert told(saved({**PICTURE, "widgets_values": [0]}, SAVED, links=[LINK]), comfyui="0" * 40)["problems"] == []


def test_a_pack_of_the_operator_is_trusted_to_have_what_it_promises() -> None:
    own = {"mine": {"commit": "0" * 40, "node_types": ["SaveMagic"]}}
    assert told(saved(PICTURE, {**SAVED, "type": "SaveMagic"}, links=[LINK]), own)["problems"] == []


def test_a_pack_of_the_operator_that_promises_nothing_may_have_any_type() -> None:
    own = {**ALL_PACKS, "mine": {"commit": "0" * 40, "node_types": []}}
    text = saved(PICTURE, {**SAVED, "type": "SaveMagic"}, links=[LINK])
    assert told(text, own) == {
        "problems": [],
        "notes": [
            "mine.json needs the node type SaveMagic, which may be of mine: "
            "name it under node_types there, and a deploy sees to it"
        ],
    }
    assert told(GOOD, own) == {"problems": [], "notes": [OPENS]}
    assert told(SAVED_BY_KJ, {"mine": own["mine"]})["problems"], "of a pack that is known, and that the host lacks"


def test_models_that_nothing_fetches_are_told_and_do_not_stop_a_deploy() -> None:
    text = json.dumps(workflows.load("Native-TextToVideo"))
    told_ = told(text)
    assert told_["problems"] == []
    (note,) = told_["notes"]
    assert "mine.json needs wan2.1_t2v_14B_fp8_scaled.safetensors" in note
    assert "add wan21-t2v to wan_models_sets, unless" in note
    other = text.replace("wan2.1_t2v", "my_own")
    files = [{**file} for file in EVERYTHING]
    assert lacking(other, files) == [
        "mine.json needs my_own_14B_fp8_scaled.safetensors, which nothing fetches: add an entry for "
        "my_own_14B_fp8_scaled.safetensors to wan_models_files, unless the host has it by other ways"
    ]
    assert lacking(other, [*files, {"id": "civitai-1", "folder": "loras"}]) == [OPENS]


HERE = "https://example.org/models/my_own.safetensors"


@pytest.mark.parametrize("inside", [False, True], ids=["plain", "in a subgraph"])
def test_the_file_itself_says_where_a_model_is(inside: bool) -> None:
    models = [{"name": "my_own.safetensors", "url": f"{HERE}?download=true", "directory": "diffusion_models"}]
    loader = {"type": "UNETLoader", "widgets_values": ["wan/my_own.safetensors", "default"]}
    about = {**loader, "properties": {"models": models}}
    whole = json.loads(saved(loader if inside else about, PICTURE, SAVED, links=[[1, 2, 0, 3, 0, "IMAGE"]]))
    if inside:
        whole["definitions"] = {"subgraphs": [{"id": "s", "nodes": [{"id": 9, **about}], "links": []}]}
    (note,) = lacking(json.dumps(whole), EVERYTHING)
    entry = {"name": "my_own.safetensors", "folder": "diffusion_models", "url": HERE}
    assert f"add {json.dumps(entry)} to wan_models_files, unless" in note


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("http://example.org/x", "loras"),
        ("https://me:secret@example.org/x", "loras"),
        ("https://example.org/{{ x }}", "loras"),
        (HERE, "../etc"),
        (HERE, "/etc"),
        (None, 1),
    ],
)
def test_what_is_no_address_or_folder_is_not_repeated(url: Any, folder: Any) -> None:
    about = {"models": [{"name": "my_own.safetensors", "url": url, "directory": folder}, 1]}
    loader = {"type": "UNETLoader", "widgets_values": ["my_own.safetensors", "default"], "properties": about}
    (note,) = lacking(saved(loader, PICTURE, SAVED, links=[[1, 2, 0, 3, 0, "IMAGE"]]), EVERYTHING)
    assert "add an entry for my_own.safetensors to wan_models_files" in note


MAGIC = {"aux_id": "them/Magic", "ver": "0123456789" * 4}


@pytest.mark.parametrize(
    ("kind", "properties", "repository", "commit"),
    [
        ("SaveMagic", MAGIC, "https://github.com/them/Magic.git", MAGIC["ver"]),
        ("SaveMagic", {**MAGIC, "ver": "1.2.3"}, "https://github.com/them/Magic.git", "the 40 digits of one"),
        ("RMBG", MAGIC, "https://github.com/1038lab/ComfyUI-RMBG.git", "the 40 digits of one"),
        ("RMBG", {}, "https://github.com/1038lab/ComfyUI-RMBG.git", "the 40 digits of one"),
    ],
)
def test_a_pack_that_the_host_lacks_is_named_once_with_its_repository(
    kind: str, properties: dict[str, Any], repository: str, commit: str
) -> None:
    # an inverted cut-out is what nothing stands for
    node = {**SAVED, "type": kind, "properties": properties, "widgets_values": ["x", 1, 1, 0, 0, True, False, "Alpha"]}
    (problem,) = told(saved(PICTURE, node, node, SAVED, links=[LINK, [1, 1, 0, 4, 0, "IMAGE"]]))["problems"]
    assert problem["found"] == f"node 2 ({kind}): the node type {kind}"
    assert problem["needed"] == f"the node pack {repository}, which has it"
    name = repository.rpartition("/")[2].removesuffix(".git")
    entry = {"name": name, "repository": repository, "commit": commit, "node_types": [kind]}
    assert f"add {json.dumps(entry)} to custom_nodes_extra" in problem["fix"]


@pytest.mark.parametrize("aux", ["x", "a/b/c", "them/{{ x }}", "../x", None, 7])
def test_what_is_no_repository_is_not_repeated(aux: Any) -> None:
    node = {**SAVED, "type": "SaveMagic", "properties": {"aux_id": aux}}
    (problem,) = told(saved(PICTURE, node, links=[LINK]))["problems"]
    assert "name its pack in custom_nodes_extra, with SaveMagic under node_types" in problem["fix"]


def test_each_pack_that_the_replacements_name_has_a_repository() -> None:
    named = {entry["pack"] for entry in replacements().values()}
    packs = json.loads(workflows.PACKS.read_text())
    assert named == set(packs)
    assert all(packs[name] == f"https://github.com/{packs[name].split('/')[3]}/{name}.git" for name in packs)


def loading(*names: str) -> str:
    """A workflow that loads diffusion models, and does nothing with them."""
    loaders = [{"type": "UNETLoader", "widgets_values": [name, "default"]} for name in names]
    return saved(*loaders, PICTURE, SAVED, links=[[1, len(names) + 1, 0, len(names) + 2, 0, "IMAGE"]])


@pytest.mark.parametrize(
    ("names", "sets", "profile", "advice"),
    [
        (["wan2.1_t2v_1.3B_bf16.safetensors"], [], "fp8", "the id wan21-t2v-1-3b-bf16 to wan_models_files"),
        (["wan2.1_i2v_480p_14B_fp8_scaled.safetensors"], [], "fp8", "wan21-i2v-480p to wan_models_sets"),
        (
            ["wan2.1_i2v_480p_14B_fp8_scaled.safetensors"],
            ["wan21-i2v-480p"],
            "full",
            "the id wan21-i2v-480p-14b-fp8-scaled to wan_models_files (the set wan21-i2v-480p has a file of another "
            "precision in its place for the profile full)",
        ),
        (
            ["wan2.1_i2v_480p_14B_bf16.safetensors", "clip_vision_h.safetensors"],
            ["encoders", "vae"],
            "fp8",
            "clip-vision to wan_models_sets and the id wan21-i2v-480p-14b-bf16 to wan_models_files",
        ),
    ],
)
def test_advice_names_sets_that_bring_little_else_and_else_the_file(
    names: list[str], sets: list[str], profile: str, advice: str
) -> None:
    (note,) = lacking(loading(*names), plan(CATALOGUE, sets=sets, profile=profile)["files"], profile)
    assert note == (
        f"mine.json needs {', '.join(names)}, which nothing fetches: add {advice}, unless the host has it by other ways"
    )


def test_every_file_of_the_catalogue_can_be_had_as_advised() -> None:
    for profile in ("small", "fp8", "full"):
        for id_ in CATALOGUE["files"]:
            advice = workflows.advise([id_], CATALOGUE, profile)
            assert id_ in advice.ids or any(
                id_ in [file["id"] for file in plan(CATALOGUE, sets=[name], profile=profile)["files"]]
                for name in advice.sets
            )


def test_of_a_name_with_a_backslash_it_is_told_that_linux_has_none() -> None:
    assert lacking(loading("Wan\\Video\\mine.safetensors"), EVERYTHING) == [
        "mine.json needs Wan\\Video\\mine.safetensors: on Linux, ComfyUI knows no name with a backslash; "
        "write Wan/Video/mine.safetensors in the workflow, and save it again"
    ]


def test_a_host_without_workflows_has_nothing_to_check() -> None:
    given = host([], "fp8", {})
    assert (given["archive"], given["problems"], given["notes"]) == (pack({}), [], [])


# -- the program


def validate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(workflows.__file__).resolve().parents[2] / "tools/validate-workflows"
    return subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, check=False)


def test_the_program_says_what_the_shipped_ones_need() -> None:
    done = validate()
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == INDEX.keys()


def test_the_program_says_what_is_wrong(tmp_path: Path) -> None:
    good, bad, none = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "none.json"
    good.write_text(GOOD)
    bad.write_text(saved(PICTURE, SAVED, {"type": "KSampler"}))
    none.write_text("{")
    done = validate(good, bad, none)
    assert done.returncode == 1
    assert f"wrong: {bad}: node 2 (SaveImage): the input images is missing\n" in done.stderr
    assert f"wrong: {bad}: node 3 (KSampler): the input model is missing\n" in done.stderr, "though it leads to no end"
    assert f"wrong: {none}: " in done.stderr
    assert str(good) not in done.stderr
    assert json.loads(validate("--api", good).stdout)["2"]["inputs"]["images"] == ["1", 0]


@pytest.mark.parametrize(
    "text",
    [
        '{"nodes": [1], "links": 5}',
        '{"nodes": [{"id": 1, "type": ["x"]}]}',
        '{"nodes": [], "definitions": 5}',
        '{"nodes": [{"id": 1, "type": "SaveImage", "inputs": [null]}], "links": [null]}',
        '{"1": {"class_type": "SaveImage", "inputs": "x"}}',
        '{"1": {"class_type": "SaveImage"}}',
    ],
)
def test_the_program_says_that_a_file_is_damaged(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(text)
    done = validate(file)
    assert done.returncode == 1
    assert f"wrong: {file}: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "[]", "{", None])
def test_the_program_says_that_an_answer_is_none(text: str | None, tmp_path: Path) -> None:
    good, info = tmp_path / "good.json", tmp_path / "info.json"
    good.write_text(GOOD)
    if text is not None:
        info.write_text(text)
    done = validate("--object-info", info, good)
    assert done.returncode == 2
    assert f"{info} is no answer of /object_info: " in done.stderr
