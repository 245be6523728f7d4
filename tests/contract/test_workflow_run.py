"""A workflow is checked against a ComfyUI, run there, and what it makes comes back: the playbook as people run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient, PromptLostError
from ansible_collections.wanmetal.comfyui.plugins.modules import workflow_run
from ansible_collections.wanmetal.comfyui.tests.contract import house
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import GRAPH, scripted
from ansible_collections.wanmetal.comfyui.tests.web import reply
from PIL import Image, PngImagePlugin


def kind(inputs: dict[str, Any], *outputs: str, ends: bool = False) -> dict[str, Any]:
    return {"input": {"required": inputs}, "output": list(outputs), "output_name": list(outputs), "output_node": ends}


INFO = {
    "LoadImage": kind({"image": [["start.png"], {"image_upload": True}]}, "IMAGE", "MASK"),
    "PrimitiveString": kind({"value": ["STRING", {}]}, "STRING"),
    "PrimitiveInt": kind({"value": ["INT", {}]}, "INT"),
    "ImageScale": kind(
        {
            "image": ["IMAGE", {}],
            "upscale_method": [["nearest-exact"]],
            "width": ["INT", {}],
            "height": ["INT", {}],
            "crop": [["disabled"]],
        },
        "IMAGE",
    ),
    "RepeatImageBatch": kind({"image": ["IMAGE", {}], "amount": ["INT", {"min": 1, "max": 4096}]}, "IMAGE"),
    "CreateVideo": kind({"images": ["IMAGE", {}], "fps": ["FLOAT", {}]}, "VIDEO"),
    "SaveVideo": kind(
        {"video": ["VIDEO", {}], "filename_prefix": ["STRING", {}], "format": [["mp4"]], "codec": [["h264"]]}, ends=True
    ),
    "UNETLoader": kind({"unet_name": [["there.safetensors"]], "weight_dtype": [["default"]]}, "MODEL"),
}


def play(folder: Path, url: str, graph: dict[str, Any] | Path, **settings: Any) -> tuple[int, str]:
    if not isinstance(graph, Path):
        (folder / "mine.json").write_text(json.dumps(graph))
        graph = Path("mine.json")
    given = {
        "file": str(graph),
        "comfyui_port": int(url.rpartition(":")[2]),
        "workflow_output_dir": str(folder / "made"),
        "wanmetal_accelerator": "cpu",
        **settings,
    }
    return house.play("workflow.yml", folder, **given)


@pytest.mark.parametrize("run", [False, True])
def test_a_workflow_is_run_where_that_is_asked_for(run: bool, tmp_path: Path) -> None:
    graph = json.loads(json.dumps(GRAPH))
    graph["1"]["inputs"]["image"] = "start.png"
    graph["8"] = {"class_type": "easy int", "inputs": {"value": 5}}
    graph["4"]["inputs"]["amount"] = ["8", 0]
    with scripted() as (fake, url):
        fake.special["/object_info"] = lambda handler: reply(handler, json.dumps(INFO).encode())
        rc, said = play(tmp_path, url, graph, run=run)
    assert rc == 0, said
    assert "replaced: node 8 (easy int): easy int → PrimitiveInt" in said
    assert "mine.json opens" in said
    assert len(fake.graphs) == int(run)
    made = list((tmp_path / "made").rglob("*.mp4"))
    if run:
        assert "here: queued as job " in said
        assert [file.read_bytes() for file in made] == [fake.video]
        assert fake.history == {}
    else:
        assert made == []
    assert not list(tmp_path.glob("*.wanmetal-workflow"))


@pytest.mark.parametrize(
    ("place", "state"), [("queue_running", "is being rendered"), ("queue_pending", "waits for other jobs")]
)
def test_it_says_where_a_job_is(place: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_run, "_LOOK_S", 0.0)
    with scripted() as (fake, url):
        fake.queue[place].append([0, "one", {}])
        assert workflow_run.looked_at(ComfyUIClient(url), "one", tmp_path)["state"] == state
        with pytest.raises(PromptLostError):
            workflow_run.looked_at(ComfyUIClient(url), "two", tmp_path)


def test_names_of_files_lead_nowhere_and_none_is_lost(tmp_path: Path) -> None:
    entry = {"filename": "../../a.png", "subfolder": "x", "type": "output"}
    temporary = {**entry, "type": "temp"}
    with scripted() as (fake, url):
        fake.files["../../a.png"] = b"pixels"
        fake.history["one"] = {"outputs": {"1": {"images": [entry, temporary, entry]}}, "status": fake.status}
        assert workflow_run.looked_at(ComfyUIClient(url), "one", tmp_path)["files"] == ["a.png", "1-a.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1-a.png", "a.png"]


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("..", "file"),
        ("", "file"),
        ("/", "file"),
        (".hidden.png", "hidden.png"),
        ("$HOME.png", "_HOME.png"),
        ("a\x1b[31m\nb.png", "a [31m b.png"),
        ("\ud800.png", " .png"),
        ("é" * 200 + ".png", "é" * 98 + ".png"),
    ],
)
def test_any_name_that_a_pack_gives_is_one_that_can_be_fetched(filename: str, name: str, tmp_path: Path) -> None:
    assert workflow_run.named(filename, []) == name
    assert workflow_run.named(filename, [name, f"2-{name}"]) == f"3-{name}"
    (tmp_path / name).touch()


def test_a_run_that_fails_leaves_nothing_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with scripted() as (fake, url):
        fake.special["/object_info"] = lambda handler: reply(handler, json.dumps(INFO).encode())
        fake.special["/view"] = lambda handler: reply(handler, b"", 404)
        graph = {**GRAPH, "1": {**GRAPH["1"], "inputs": {"image": "start.png"}}}
        rc, said = play(tmp_path, url, graph, run=True)
    assert (rc, "/view answered 404" in said) == (2, True), said
    assert not list(tmp_path.glob("*.wanmetal-workflow"))


def test_what_cannot_run_is_told_and_not_run(tmp_path: Path) -> None:
    loader = {"class_type": "UNETLoader", "inputs": {"unet_name": "mine.safetensors", "weight_dtype": "default"}}
    graph = {**GRAPH, "9": loader, "10": {"class_type": "RMBG", "inputs": {"image": ["1", 0], "invert_output": True}}}
    graph["4"] = {**GRAPH["4"], "inputs": {**GRAPH["4"]["inputs"], "amount": 0}}
    with scripted() as (fake, url):
        fake.special["/object_info"] = lambda handler: reply(handler, json.dumps(INFO).encode())
        rc, said = play(tmp_path, url, graph, run=True)
    assert rc == 2
    assert fake.graphs == []
    assert "lacks the node pack https://github.com/1038lab/ComfyUI-RMBG.git" in said
    assert "amount must be 1 to 4096, found 0" in said


def test_what_comfyui_refuses_is_told_with_what_would_help(tmp_path: Path) -> None:
    name = "wan2.1_i2v_720p_14B_fp8_e4m3fn.safetensors"
    loader = {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}
    said = [{"message": "Value not in list", "details": f"unet_name: '{name}' not in ['there.safetensors']"}]
    refusal = {"error": {"message": "Prompt outputs failed validation"}, "node_errors": {"9": {"errors": said}}}
    with scripted(reject=refusal) as (fake, url):
        fake.special["/object_info"] = lambda handler: reply(handler, json.dumps(INFO).encode())
        rc, told = play(tmp_path, url, {**GRAPH, "9": loader}, run=True)
    assert (rc, fake.graphs) == (2, []), told
    assert "add wan21-i2v-720p to wan_models_sets" in told
    assert "Value not in list" in told


def test_a_picture_with_a_workflow_inside_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", json.dumps(GRAPH))
    Image.new("RGB", (8, 8)).save(tmp_path / "a fox.png", pnginfo=info)
    with scripted() as (fake, url):
        fake.special["/object_info"] = lambda handler: reply(handler, json.dumps(INFO).encode())
        rc, told = play(tmp_path, url, Path("a fox.png"), run=True)
        assert (rc, len(fake.graphs)) == (0, 1), told
        rc, told = play(tmp_path, url, Path("none.png"))
    assert rc == 2
    assert f"There is no file {tmp_path}/none.png on this machine" in " ".join(told.split())
