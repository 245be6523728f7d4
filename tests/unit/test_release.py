from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.filter.filters import FilterModule
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import release
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.release import release_id

INPUTS: dict[str, Any] = {"commit": "f8b981a", "lane": "cu128", "python": "3.12", "packs": ["a", "b"]}


def test_an_id_is_a_version_and_a_hash() -> None:
    assert re.fullmatch(r"0\.3\.75-[0-9a-f]{10}", release_id(INPUTS, "0.3.75"))


def test_the_same_inputs_give_the_same_id() -> None:
    assert release_id(dict(reversed(INPUTS.items())), "1") == release_id(INPUTS, "1")
    assert release_id({"a": "b"}, "0.3.75") == "0.3.75-4bc88425c7", "ids must not change without a reason"


@pytest.mark.parametrize(
    "other",
    [
        {**INPUTS, "commit": "f8b981b"},
        {**INPUTS, "packs": ["b", "a"]},
        {**INPUTS, "python": 3.12},
        {**INPUTS, "more": "x"},
        {name: value for name, value in INPUTS.items() if name != "lane"},
    ],
)
def test_other_inputs_give_another_id(other: dict[str, Any]) -> None:
    assert release_id(other, "1") != release_id(INPUTS, "1")


def test_another_recipe_gives_another_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = release_id(INPUTS, "1")
    monkeypatch.setattr(release, "RECIPE", release.RECIPE + 1)
    assert release_id(INPUTS, "1") != before


@pytest.mark.parametrize("empty", ["", None])
def test_empty_inputs_are_refused(empty: str | None) -> None:
    with pytest.raises(ValueError, match=r"inputs of the release are empty: commit, lane$"):
        release_id({**INPUTS, "lane": empty, "commit": empty}, "1")
    with pytest.raises(AnsibleFilterError, match="release_id: inputs of the release are empty: lane"):
        FilterModule().filters()["release_id"]({**INPUTS, "lane": empty}, "1")


@pytest.mark.parametrize("value", [[], {}, 0, False])
def test_nothing_is_a_value_where_it_is_no_text(value: object) -> None:
    assert release_id({**INPUTS, "packs": value}, "1") != release_id(INPUTS, "1")
