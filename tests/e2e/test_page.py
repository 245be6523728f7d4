"""What somebody new sees: ComfyUI's real page opens a workflow that the host has the models for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.user_files import unpack
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks, workflows
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import plan

from tests.e2e import frontend
from tests.worker import PROJECT

CATALOGUE = locks.load("models")
FIRST = "Native TextToVideo 1.3B"
LOOK = b"""
import { app } from "../../scripts/app.js";
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
async function look() {
  const tab = () => app.extensionManager.workflow.activeWorkflow?.filename;
  const shown = () => (app.graph?._nodes?.length && tab()) || document.querySelector('[role="dialog"]');
  while (!shown()) await pause(200);
  await pause(1000);
  const found = {
    tab: tab(),
    nodes: (app.graph?._nodes ?? []).map((node) => node.type),
    dialog: document.querySelector('[role="dialog"]')?.textContent ?? "",
    tutorial: app.extensionManager.setting.get("Comfy.TutorialCompleted"),
  };
  await fetch("/userdata/wanmetal-export.json", { method: "POST", body: JSON.stringify(found) });
}
app.registerExtension({ name: "tests.look", setup() { setTimeout(look, 1000); } });
"""


def gallery() -> dict[str, bytes]:
    """What a host with the models of the default gets, as the page asks for it."""
    files = plan(CATALOGUE, sets=["wan21-t2v-1.3b"], profile="fp8")["files"]
    placed = unpack(workflows.for_host(files, {}, CATALOGUE, {})["archive"])
    shown = {path.removeprefix("gallery/"): data for path, data in placed.items() if path.startswith("gallery/")}
    return {f"/workflow_templates/wanmetal/{name}": data for name, data in shown.items()}


def opened(version: str, files: dict[str, bytes], **answers: Any) -> dict[str, Any]:
    """What is on the page of somebody new."""
    script = (PROJECT / "roles/comfyui/files/page/page.js").read_bytes()
    raw = {**files, "/extensions/wanmetal/page.js": script, "/extensions/tests/look.js": LOOK}
    given = {"/settings": {}, "/userdata": [], **{f"/{name}": value for name, value in answers.items()}}
    page = frontend.Page(frontend.package(version), workflow_schemas.recorded(), {}, {}, answers=given, raw=raw)
    return frontend.exported(page, query="")


VERSIONS = [
    pytest.param(frontend.pinned_version(), id="pinned"),
    pytest.param(frontend.pinned_version("practice"), id="practice", marks=pytest.mark.slow),
    pytest.param("1.58.1", id="newer", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("version", VERSIONS)
def test_somebody_new_sees_a_workflow_of_the_host(version: str) -> None:
    found = opened(version, gallery())
    shipped = json.loads(gallery()[f"/workflow_templates/wanmetal/{FIRST}.json"])
    assert (found["tab"], found["dialog"], found["tutorial"]) == (FIRST, "", True)
    assert sorted(found["nodes"]) == sorted(node["type"] for node in shipped["nodes"])


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_somebody_s_is_not_under_the_tab(version: str) -> None:
    theirs = [{"path": f"{FIRST}.json", "size": 2, "modified": 1, "created": 1}]
    found = opened(version, gallery(), userdata=theirs, settings={"Comfy.TutorialCompleted": True})
    assert "MarkdownNote" in found["nodes"]
    assert FIRST not in found["tab"]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_workflow_of_the_host_the_page_is_comfyui_s(version: str) -> None:
    found = opened(version, {})
    assert found["nodes"] == []
    assert found["tab"] != FIRST
    assert found["dialog"], "ComfyUI's own gallery"
