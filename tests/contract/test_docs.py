from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import settings
from ansible_collections.wanmetal.comfyui.tests.contract import house
from ansible_collections.wanmetal.comfyui.tools import docs

SHIPPED = house.ROOT / "inventories/gpu_hosts/group_vars/gpu_hosts.yml"
FLEET = house.ROOT / "inventories/fleet-example"


def test_what_is_made_is_current() -> None:
    assert docs.stale() == [], "run tools/docs.py"


def test_what_is_not_current_is_seen(tmp_path: Path) -> None:
    for folder in ("roles", "playbooks", "inventories"):
        shutil.copytree(house.ROOT / folder, tmp_path / folder)
    for name, text in docs.made(tmp_path).items():
        (tmp_path / name).write_text(text)
    assert docs.stale(tmp_path) == []
    specs = tmp_path / "roles/comfyui/meta/argument_specs.yml"
    specs.write_text(specs.read_text().replace("default: 8188", "default: 8199"))
    (tmp_path / "roles/verify/README.md").unlink()
    (tmp_path / "roles/gone").mkdir()
    (tmp_path / "roles/gone/README.md").write_text("x")
    assert docs.stale(tmp_path) == [
        "roles/comfyui/README.md",
        "roles/verify/README.md",
        "inventories/gpu_hosts/group_vars/gpu_hosts.yml",
        "roles/gone/README.md",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C(a b) and V(c)", "`a b` and `c`"),
        ("O(x=1), E(HOME), RV(y)", "`x=1`, `HOME`, `y`"),
        ("M(a.b.c), P(a.b.d#filter)", "`a.b.c`, `a.b.d`"),
        ("B(bold) I(italic)", "**bold** *italic*"),
        ("U(https://example.com)", "<https://example.com>"),
        ("L(the site, https://example.com)", "[the site](https://example.com)"),
        (r"V(f(x\)) and V(a\\b)", r"`f(x)` and `a\b`"),
        ("a word(not marked) and FOO(x)", "a word(not marked) and FOO(x)"),
    ],
)
def test_markup(text: str, expected: str) -> None:
    assert docs.markdown(text) == expected
    assert docs.plain("O(x) is B(y)") == "x is y"


def test_a_readme_s_table(tmp_path: Path) -> None:
    meta = tmp_path / "roles/wanmetal/meta"
    meta.mkdir(parents=True)
    spec = {
        "main": {
            "short_description": "One",
            "description": ["First.", "Second."],
            "options": {
                "one_a": {"type": "list", "elements": "dict", "default": [], "description": "C(x|y).", "options": {}},
                "one_b": {"required": True, "description": ["B.", "C."], "choices": ["p", True]},
            },
        },
        "go": {"short_description": "Go", "description": "Goes.", "options": {"one_b": {}}},
    }
    spec["main"]["options"]["one_a"]["options"] = {"deep": {"type": "int", "default": 1, "description": "D."}}  # type: ignore[index]
    (meta / "argument_specs.yml").write_text(yaml.safe_dump({"argument_specs": spec}))
    text = docs.readme(tmp_path, "wanmetal")
    assert "| `one_a` | list of dict | `[]` | `x\\|y`. |\n| `one_a[].deep` | int | `1` | D. |" in text
    assert "| `one_b` | str | required | B. C. One of `p`, `true`. |" in text
    assert "- `go`: Goes. Takes `one_b`." in text
    assert "First.\n\nSecond." in text


def test_the_shipped_inventory_names_every_setting_with_its_default() -> None:
    given = yaml.safe_load("\n".join(re.findall(r"(?m)^# ([a-z0-9_]+: .+)$", SHIPPED.read_text())))
    expected = {name: spec["default"] for name, spec in settings.load_specs().options.items() if "default" in spec}
    assert given == expected
    assert house.read(SHIPPED) is None, "as shipped it sets nothing"


@pytest.mark.parametrize("host", ["gpu1", "gpu3"])
def test_the_example_of_a_fleet_is_in_order(host: str) -> None:
    values = house.read(FLEET / "group_vars/gpu_hosts.yml")
    own = FLEET / f"host_vars/{host}.yml"
    values |= house.read(own) if own.is_file() else {}
    assert host in house.read(FLEET / "hosts.yml")["gpu_hosts"]["hosts"]
    assert settings.check(values, values, settings.load_specs(), lambda _: None) == []


DEVELOPING = (house.ROOT / "docs/developing.md").read_text()


def test_the_picture_is_of_its_text_and_has_every_role() -> None:
    source, picture = ((house.ROOT / f"docs/images/parts.{form}").read_text() for form in ("dot", "svg"))
    labels = [line for label in re.findall(r'label="([^"]*)"', source) for line in label.split("\\n")]
    shown = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)]
    assert sorted(shown) == sorted(labels), "run tools/picture"
    named = [role for label in labels for role in re.findall(r"\[(\w+)\]", label)]
    assert sorted(named) == house.roles(), "change docs/images/parts.dot, and run tools/picture"


def test_the_table_of_faults_names_tests_that_there_are() -> None:
    named = re.findall(r"\| `(\w+/test_\w+\.py)::(\w+)` \|", DEVELOPING)
    assert f"These {len(named)} faults" in DEVELOPING
    files = {file: (house.ROOT / "tests" / file).read_text() for file, _ in named}
    assert [f"{file}::{test}" for file, test in named if f"\ndef {test}(" not in files[file]] == []


def test_the_walks_are_short_and_lead_to_files() -> None:
    text = DEVELOPING.split("## Three walks")[1].split("\n## ")[0]
    walks = [part for part in text.split("\n\n") if part.startswith("**")]
    for walk, longest in zip(walks, (7, 15, 9), strict=True):
        folder, files = "", []
        for name in re.findall(r"`([\w/.]+)`", walk.split(": ", 1)[1]):
            if (house.ROOT / name).is_dir():
                folder = name
            else:
                files.append(house.ROOT / ("" if "/" in name else folder) / name)
        assert [file for file in files if not file.is_file()] == []
        assert 2 < len(files) <= longest, walk
