from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import settings
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.legacy_env import TABLE
from wanmetal_handler.request import FIELDS, OLD_NAMES

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
    roles = "\n".join(path.read_text() for path in (PROJECT / "roles").glob("*/vars/main.yml"))
    assert [setting for setting in TABLE[name].settings if setting not in KNOWN and setting not in roles] == []


def test_the_task_takes_each_setting() -> None:
    task = (PROJECT / "playbooks/tasks/legacy_env.yml").read_text()
    taken = re.findall(r"^    (\w+): \"\{\{ legacy_env_found\.settings\.(\w+) \| default\(omit\) \}\}\"$", task, re.M)
    assert {new for old, new in taken if old == new} == {name for old in TABLE.values() for name in old.settings}


def test_the_handler_s_document_has_each_field() -> None:
    text = (PROJECT / "docs/handler.md").read_text()
    assert [name for name in [*FIELDS, *OLD_NAMES] if f"`{name}`" not in text] == []
