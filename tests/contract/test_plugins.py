from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.filter.filters import FILTERS
from ansible_collections.wanmetal.comfyui.tests.contract import house

PLUGINS = house.ROOT / "plugins"
COLLECTION = "wanmetal.comfyui"
KINDS = {"module": "modules", "filter": "filter", "lookup": "lookup", "callback": "callback", "test": "test"}


def names(kind: str) -> list[str]:
    if kind == "filter":
        return sorted(FILTERS)
    return sorted(path.stem for path in (PLUGINS / KINDS[kind]).glob("*.py") if path.stem != "__init__")


MODULES = names("module")
# An action has its documentation in a module of the same name, which does nothing.
ACTIONS = {path.stem for path in (PLUGINS / "action").glob("*.py")}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if names(kind)])
def test_ansible_takes_the_documentation(kind: str) -> None:
    """One call for all plugins of a kind: each takes a second."""
    program = Path(sys.executable).parent / "ansible-doc"
    called = [f"{COLLECTION}.{name}" for name in names(kind)]
    done = subprocess.run(
        [program, "--type", kind, "--json", *called],
        capture_output=True,
        text=True,
        check=False,
        cwd=house.ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(house.ROOT / "ansible.cfg")},
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr
    found = json.loads(done.stdout)
    assert sorted(found) == called
    for name, text in found.items():
        assert text["doc"]["short_description"], name
        assert text["doc"]["version_added"], name
        if kind != "callback":
            assert text["examples"].strip(), name
            assert text["return"] or name.rpartition(".")[2] in ACTIONS, name


class Captured(Exception):  # noqa: N818
    """Ends a module where it hands over its arguments."""


def arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a module hands to AnsibleModule."""
    module = importlib.import_module(f"ansible_collections.{COLLECTION}.plugins.modules.{name}")

    def capture(**given: Any) -> None:
        raise Captured(given)

    monkeypatch.setattr(module, "AnsibleModule", capture)
    with pytest.raises(Captured) as caught:
        module.main()
    given: dict[str, Any] = caught.value.args[0]
    return given


def shape(options: Mapping[str, Any], inner: str) -> dict[str, Any]:
    """Of options, whether documented or declared, what has to be the same in both."""
    return {
        name: {
            "type": spec.get("type", "str"),
            "required": spec.get("required", False),
            "default": spec.get("default"),
            "choices": spec.get("choices"),
            "elements": spec.get("elements"),
            "inner": shape(spec.get(inner) or {}, inner),
        }
        for name, spec in options.items()
    }


def documented(name: str) -> dict[str, Any]:
    """A module's options, with those that Ansible's own fragments bring left out."""
    module = importlib.import_module(f"ansible_collections.{COLLECTION}.plugins.modules.{name}")
    found: dict[str, Any] = yaml.safe_load(module.DOCUMENTATION)
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ACTIONS])
def test_a_module_takes_what_it_documents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(name, monkeypatch)
    text = documented(name)
    said = shape(_suboptions(text.get("options") or {}), "suboptions")
    assert shape(given["argument_spec"], "options") == said
    assert given.get("supports_check_mode", False) == (text["attributes"]["check_mode"]["support"] != "none")


def _suboptions(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose own options stand under one name, whichever of the two the documentation has used."""
    return {
        name: {**spec, "suboptions": _suboptions(spec.get("suboptions") or spec.get("options") or {})}
        for name, spec in options.items()
    }
