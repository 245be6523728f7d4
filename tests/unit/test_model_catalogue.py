"""The catalogue that is shipped."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import request
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import PROFILES, plan

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = locks.load("models")
FIELDS = ["name", "folder", "urls", "bytes", "sha256", "task", "precision", "parameters", "licence", "vram_gb"]
WITHOUT = {"image_joyai_image_edit", "video_wan_animate2"}
"""Templates that name models of another family, or node types of a newer ComfyUI."""
ELSEWHERE = {"PrimitiveNode", "GeminiImageNode", "GeminiNodeV3"}
"""A node of the browser alone, and those that comfyui_partner_nodes adds."""


@pytest.mark.parametrize("id_", CATALOGUE["files"])
def test_every_file_has_the_same_fields(id_: str) -> None:
    entry = CATALOGUE["files"][id_]
    assert [key for key in entry if key not in {"about_bytes", "note"}] == FIELDS
    request.parse_file({"id": id_, **entry})
    assert bool(entry["bytes"]) != ("about_bytes" in entry), "an unknown size is estimated, a known one is not"
    assert all(url.startswith("https://") for url in entry["urls"])
    assert entry["name"] in entry["urls"][0] or "note" in entry, "a file that is renamed says so"


def test_no_two_files_are_the_same_bytes_or_the_same_place() -> None:
    hashes = [entry["sha256"] for entry in CATALOGUE["files"].values() if entry["sha256"]]
    assert len(hashes) == len(set(hashes))
    request.parse_files({"id": id_, **entry} for id_, entry in CATALOGUE["files"].items())


@pytest.mark.parametrize("name", CATALOGUE["sets"])
def test_every_set_is_made_of_what_there_is(name: str) -> None:
    entry = CATALOGUE["sets"][name]
    assert entry["description"]
    assert set(entry) <= {"description", "needs", "files", "profiles", "variants"}
    assert set(entry.get("needs", [])) <= set(CATALOGUE["sets"])
    assert set(entry.get("profiles", PROFILES)) == set(PROFILES), "a set says what it has for each profile"
    by_profile = [entry.get("profiles", {}), *entry.get("variants", {}).values()]
    assert all(set(one) in ({*PROFILES}, set()) for one in by_profile)
    assert set(entry.get("variants", {})) <= {"base", "wan"}
    listed = [*entry.get("files", []), *(id_ for one in by_profile for ids in one.values() for id_ in ids)]
    assert set(listed) <= set(CATALOGUE["files"])


@pytest.mark.parametrize(("name", "profile"), list(product(CATALOGUE["sets"], PROFILES)))
def test_every_set_can_be_planned(name: str, profile: str) -> None:
    planned = plan(CATALOGUE, sets=[name], profile=profile)
    assert planned["files"] or planned["notes"]


def test_below_24_gb_no_14b_model_is_planned() -> None:
    for entry in plan(CATALOGUE, sets=list(CATALOGUE["sets"]), profile="small")["files"]:
        kept = CATALOGUE["files"][entry["id"]]
        assert kept["parameters"] != "14B" or kept["folder"] == "loras", entry["id"]


def test_a_variant_brings_no_more_than_it_needs() -> None:
    for name, wrappers in {"encoders": "umt5-xxl-enc", "vae": "wan2-1-vae"}.items():
        planned = {
            variant: {entry["id"] for entry in plan(CATALOGUE, sets=[name], profile="full", variant=variant)["files"]}
            for variant in ("base", "wan")
        }
        assert [id_ for id_ in planned["base"] if id_.startswith("kj-")] == []
        assert [id_ for id_ in planned["wan"] if wrappers in id_ and id_.startswith("kj-")] != []
        assert planned["base"] < planned["wan"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("variant", ["base", "wan"])
def test_what_is_fetched_as_shipped_makes_a_video(profile: str, variant: str) -> None:
    defaults = yaml.safe_load((ROOT / "roles/wan_models/defaults/main.yml").read_text(encoding="utf-8"))
    template = locks.load("templates")["text_to_video_wan"]
    planned = plan(CATALOGUE, sets=defaults["wan_models_sets"], profile=profile, variant=variant)["files"]
    assert set(template["models"]) <= {f"{entry['folder']}/{entry['name']}" for entry in planned}
    assert 9e9 < sum(entry.get("bytes") or entry["about_bytes"] for entry in planned) < 11e9


def test_the_official_templates_find_what_they_name() -> None:
    """What 40 templates of the Wan family name, as the package comfyui-workflow-templates-json 0.1.123 has them."""
    templates = locks.load("templates")
    known = {(entry["folder"], entry["name"]) for entry in CATALOGUE["files"].values()}
    core = set(json.loads((ROOT / "files/locks/schemas/core.json").read_text(encoding="utf-8"))["types"])
    models = {
        name: [model for model in template["models"] if tuple(model.split("/", 1)) not in known]
        for name, template in templates.items()
    }
    nodes = {name: sorted(set(template["nodes"]) - core - ELSEWHERE) for name, template in templates.items()}
    assert len(templates) == 40
    assert {name for name in templates if models[name] or nodes[name]} == WITHOUT, (models, nodes)


# The document


def size(name: str, profile: str) -> str:
    entries = [CATALOGUE["files"][entry["id"]] for entry in plan(CATALOGUE, sets=[name], profile=profile)["files"]]
    total = sum(entry["bytes"] or entry["about_bytes"] for entry in entries)
    about = "about " if any(entry["bytes"] is None for entry in entries) else ""
    return f"{about}{total / 1e9:.1f} GB" if entries else "nothing"


def row(name: str) -> str:
    sizes = " | ".join(size(name, profile) for profile in PROFILES)
    return f"| `{name}` | {CATALOGUE['sets'][name]['description']} | {sizes} |"


def test_the_table_of_sets_is_current() -> None:
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    shown = [line for line in text.split("\n") if line.startswith("| `")]
    assert shown == [row(name) for name in CATALOGUE["sets"]]


def test_the_fields_are_named() -> None:
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert [name for name in [*FIELDS, *PROFILES] if f"`{name}`" not in text] == []
