from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import settings
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.legacy_env import TABLE
from wanmetal_handler.inputs import KNOWN as INPUTS
from wanmetal_handler.inputs import OLD_NAMES

PROJECT = Path(__file__).resolve().parents[2]
ROWS = dict(
    re.findall(r"^\| `(\w+)` \| (?:\S+ )?\| (.+) \|$", (PROJECT / "docs/from-docker.md").read_text(), re.MULTILINE)
)
KNOWN = settings.load_specs().known


def test_the_document_has_each_setting_and_no_other() -> None:
    assert set(ROWS) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_it_says_what_each_becomes(name: str) -> None:
    new = TABLE[name].settings
    assert [setting for setting in new if setting not in ROWS[name] and setting != name] == []


@pytest.mark.parametrize("name", TABLE)
def test_what_it_becomes_is_a_setting(name: str) -> None:
    assert set(TABLE[name].settings) <= KNOWN


def test_the_task_takes_each_setting() -> None:
    task = yaml.safe_load((PROJECT / "playbooks/tasks/legacy_env.yml").read_text())[-1]["ansible.builtin.set_fact"]
    assert set(task) == {name for old in TABLE.values() for name in old.settings}
    assert all(f"legacy_env_found.settings.{name}" in text and "omit" in text for name, text in task.items())


def test_the_handler_s_document_has_each_field() -> None:
    text = (PROJECT / "docs/handler.md").read_text()
    named = [name for name in INPUTS if not name.startswith(("lora_1", "lora_2", "lora_3", "lora_4", "num_masks"))]
    fields = ["image", "end_image", "positive_prompt", "positive_prompt_2", "negative_prompt", *named, *OLD_NAMES]
    assert [name for name in fields if f"`{name}`" not in text] == []
