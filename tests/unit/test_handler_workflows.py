from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import GRAPH, WORKFLOW
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wanmetal_handler.workflows import (
    Workflow,
    WorkflowError,
    listed,
    load,
    models,
)

FLAGSHIP = "Wrapper-SelfForcing-ImageToVideo-60FPS"


def from_entries(folder: Path, *entries: dict[str, Any]) -> dict[str, Workflow]:
    (folder / "w.json").write_text(json.dumps(entries))
    return load(folder / "w.json")


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    return from_entries(tmp_path_factory.mktemp("still"), WORKFLOW)["still"]


def test_a_workflow_that_fits(still: Workflow) -> None:
    assert still.output == "6"
    assert still.fields["num_frames"] == ("4", "amount")
    assert still.fields["frame_rate"] is None


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"steps": ["Sampler", "steps"]}, "steps: 0 nodes are titled 'Sampler', one has to be"),
        ({"steps": ["Frames", "steps"]}, "steps: node 'Frames' has no input 'steps'"),
        ({"image": ["Size", "image"]}, "input 'image' of node 'Size' is a link"),
        ({"filename_prefix": ["Nothing", "x"]}, "filename_prefix: 0 nodes are titled 'Nothing'"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_at_the_start(
    settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(WorkflowError, match="still: ") as caught:
        from_entries(tmp_path, WORKFLOW | {"settings": WORKFLOW["settings"] | settings})
    assert problem in str(caught.value)


def test_a_title_that_two_nodes_have(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="filename_prefix: 2 nodes are titled 'Save'"):
        from_entries(tmp_path, WORKFLOW | {"graph": {**GRAPH, "8": GRAPH["6"]}})


def test_all_shipped_workflows_with_a_video_fit_and_the_flagship_has_the_image_s_defaults(tmp_path: Path) -> None:
    shipped = workflows.index().items()
    found = from_entries(
        tmp_path,
        *({"name": n, "graph": workflows.load_api(n), "settings": entry["settings"]} for n, entry in shipped),
    )
    flagship = found[FLAGSHIP]
    defaults = {"width": 720, "height": 1280, "num_frames": 81, "steps": 5, "cfg_scale": 1.0, "shift": 8.0}
    defaults |= {"lora_strength": 0.7, "interpolation_multiplier": 5, "final_frame_rate": 60}
    assert defaults.items() <= flagship.values(flagship.graph).items()
    others = {"image", "positive_prompt", "negative_prompt", "seed", "frame_rate", "attention_mode"}
    others |= {f"lora_{number}{what}" for number in range(1, 5) for what in ("", "_strength")}
    assert set(flagship.fields) - set(defaults) == others
    assert {name for name, one in found.items() if "video" in one.inputs} == {
        name for name, entry in shipped if "video" in entry["settings"]
    }
    for name, one in found.items():
        example = one.described()["example"]["input"]
        assert example.pop("workflow") == name
        assert one.task(example).graph.keys() == one.graph.keys()


def test_no_workflow_at_all(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="has no workflows"):
        from_entries(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=50), st.integers(4, 128), st.integers(0, 250))
def test_values_reach_their_places_and_nothing_else_changes(
    still: Workflow, prompt: str, by_16: int, by_4: int
) -> None:
    before = copy.deepcopy(GRAPH)
    values = {"frame_rate": 16, "positive_prompt": prompt, "width": by_16 * 16, "num_frames": by_4 * 4 + 1}
    graph = still.task(values | {"image": "A"}).filled({"image": ""}, "handler/one")
    assert before == GRAPH
    assert graph["2"]["inputs"]["value"] == prompt
    assert graph["3"]["inputs"] == GRAPH["3"]["inputs"] | {"width": by_16 * 16}
    assert graph["4"]["inputs"]["amount"] == by_4 * 4 + 1
    assert graph["6"]["inputs"]["filename_prefix"] == f"handler/one-{list(GRAPH).index('6')}"
    assert {key: graph[key] for key in ("1", "5")} == {key: GRAPH[key] for key in ("1", "5")}


@pytest.mark.parametrize("key", ["images", "gifs", "audio"])
def test_files_are_found_in_all_shapes(key: str) -> None:
    found = {"filename": "a.mp4", "subfolder": "x", "type": "temp", "format": "video/h264-mp4"}
    outputs = {"6": {key: [{"filename": "a.png"}, found, found], "text": ["x"], "n": 3}, "7": None}
    expected = [
        {"filename": "a.png", "subfolder": "", "type": "output"},
        {"filename": "a.mp4", "subfolder": "x", "type": "temp"},
    ]
    assert listed(outputs) == listed(outputs, "6") == expected
    assert listed(outputs, "7") == listed(outputs, "8") == listed({}) == []


def test_models_of_a_graph() -> None:
    graph: dict[str, dict[str, Any]] = {
        "1": {"inputs": {"a": "Wan/x.safetensors", "b": 3, "c": ["2", 0], "d": "y.PT"}},
        "2": {"inputs": {"a": "z.pth"}},
    }
    assert models(graph) == ["Wan/x.safetensors", "z.pth"]
