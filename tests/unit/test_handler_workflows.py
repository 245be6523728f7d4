from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.roles.handler.files.wanmetal_handler.failure import JobError
from ansible_collections.wanmetal.comfyui.roles.handler.files.wanmetal_handler.workflows import (
    Workflow,
    WorkflowError,
    load,
)
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import GRAPH, WORKFLOW
from hypothesis import given
from hypothesis import strategies as st


def workflow(**other: Any) -> Workflow:
    parts = {key: WORKFLOW[key] for key in ("name", "graph", "fields", "output", "defaults")} | other
    return Workflow(**parts)


def test_a_workflow_that_fits(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(json.dumps([WORKFLOW]))
    found = load(tmp_path / "w.json")["still"]
    assert found == workflow(required=("image",))
    assert len(found.sha256) == 64


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"fields": {"colour": []}}, "there is no field colour"),
        ({"fields": {"steps": [["Sampler", "steps"]]}}, "steps: 0 nodes are titled 'Sampler', one has to be"),
        ({"fields": {"steps": [["Frames", "steps"]]}}, "steps: node 'Frames' has no input 'steps'"),
        ({"fields": {"image": [["Size", "image"]]}}, "input 'image' of node 'Size' is a link"),
        ({"output": "Nothing"}, "output: 0 nodes are titled 'Nothing'"),
        ({"fields": {}, "defaults": {"steps": 5}}, "steps has a default or is required, and no place"),
        ({"defaults": {"num_frames": 80}}, "the default 80 of num_frames is not a whole number"),
        ({"graph": {**GRAPH, "7": GRAPH["6"]}}, "output: 2 nodes are titled 'Save'"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_at_the_start(other: dict[str, Any], problem: str, tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(json.dumps([WORKFLOW | other]))
    with pytest.raises(WorkflowError, match="still: ") as caught:
        load(tmp_path / "w.json")
    assert problem in str(caught.value)


def test_no_workflow_at_all(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text("[]")
    with pytest.raises(WorkflowError, match="has no workflows"):
        load(tmp_path / "w.json")


@given(st.text(max_size=50), st.integers(4, 128), st.integers(0, 250))
def test_values_reach_their_places_and_nothing_else_changes(prompt: str, by_16: int, by_4: int) -> None:
    before = copy.deepcopy(GRAPH)
    values = {"positive_prompt": prompt, "width": by_16 * 16, "num_frames": by_4 * 4 + 1}
    graph = workflow().fill(values, "handler/one")
    assert before == GRAPH
    assert graph["2"]["inputs"]["value"] == prompt
    assert graph["3"]["inputs"] == GRAPH["3"]["inputs"] | {"width": by_16 * 16}
    assert graph["4"]["inputs"]["amount"] == by_4 * 4 + 1
    assert graph["6"]["inputs"]["filename_prefix"] == "handler/one-5"
    assert {key: graph[key] for key in ("1", "5")} == {key: GRAPH[key] for key in ("1", "5")}


@pytest.mark.parametrize("key", ["images", "gifs"])
def test_the_video_is_found_in_both_shapes(key: str) -> None:
    listed = [
        {"filename": "a.png"},
        {"filename": "a.mp4", "subfolder": "x", "type": "temp", "format": "video/h264-mp4"},
    ]
    assert workflow().video({"6": {key: listed}}) == {"filename": "a.mp4", "subfolder": "x", "type": "temp"}


@pytest.mark.parametrize("outputs", [{}, {"6": {}}, {"6": {"images": [{"filename": "a.png"}]}}, {"5": {"gifs": ["x"]}}])
def test_no_video(outputs: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="node 'Save' gave no video"):
        workflow().video(outputs)


def test_models_of_a_graph() -> None:
    graph: dict[str, dict[str, Any]] = {
        "1": {"inputs": {"a": "Wan/x.safetensors", "b": 3, "c": ["2", 0], "d": "y.PT"}},
        "2": {"inputs": {"a": "z.pth"}},
    }
    assert workflow().models(graph) == ["Wan/x.safetensors", "z.pth"]
