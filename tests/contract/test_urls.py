"""Every address that something is fetched from passes the filter mirror.

Two checks. An address, written out or read from a lock, must not reach a task or a template unless it went through the
filter on its way, by whatever variables. And what a module that fetches gets as an address must have come through it,
also where nothing tells what it holds.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house

ADDRESS = re.compile(r"\b(?:https?|git|ssh)://(?!127\.0\.0\.1|localhost|\[::1\])[A-Za-z0-9]")
FILTER = "wanmetal.comfyui.mirror"
# A variable, an attribute of one, a list or a text, with the filter behind it.
MIRRORED = re.compile(
    r"""(?: '[^']*' | "[^"]*" | \[[^][]*\] | [\w.]+ (?:\[[^]]*\])* )"""
    rf"""\s* \| \s* (?: {re.escape(FILTER)}\( | map\(['"]{re.escape(FILTER)}['"] )""",
    re.VERBOSE,
)

FETCHERS = {
    "ansible.builtin.apt_repository": ("repo",),
    "ansible.builtin.deb822_repository": ("uris", "signed_by"),
    "ansible.builtin.get_url": ("url",),
    "ansible.builtin.git": ("repo",),
    "ansible.builtin.uri": ("url",),
    "wanmetal.comfyui.aria2_download": ("civitai_api", "files"),
    "wanmetal.comfyui.git_checkouts": ("checkouts",),
}
KEY_FILES = re.compile(r"{{ __\w+_key_file }}|/[\w./-]+")
"""Keys of repositories that lie on the host."""

GIVEN = re.compile(r"\b\w+_wheel_url\b")
"""Settings in which an operator names what is fetched. They have no address of their own that would show."""

OWN_SERVICES = ("comfyui_url",)
"""Addresses of what runs on the host itself."""
LOOPBACK = re.compile(r"https?://(?:127\.0\.0\.1|localhost|\[::1\])[:/]")

MODELS = re.compile(r"wanmetal\.comfyui\.(?:model_plan\((?!versions=\w+\)|state=)|node_packs\()")
"""These filters rewrite the addresses in their locks themselves. A plan of CivitAI versions alone has none yet,
and one that is joined with the state of a host has been through it."""

PLAN = re.compile(r"__preflight_plan\.\w+")
"""A plan's parts are put together from variables that are checked here; its own keys are no lock's."""


class Sources:
    """The YAML of a collection, read for where its addresses go."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tasks = [(path, task) for role in house.roles(root) for path, task in house.role_tasks(role, root)]
        for path in sorted((root / "playbooks").glob("*.yml")):
            self.tasks += [(str(path.relative_to(root)), task) for task in house.tasks(house.read(path))]
        self.definitions = list(self._definitions())
        self.keys = set(self._address_keys())
        self.spoiled = self._spoiled()

    def _definitions(self) -> Iterator[tuple[str, str]]:
        """Variables and their texts. One that is set in several places is there several times."""
        groups: list[Mapping[str, Any]] = []
        for role in house.roles(self.root):
            groups += [house.role_file(role, f"{folder}/main.yml", self.root) for folder in ("defaults", "vars")]
        for _, task in self.tasks:
            groups += [task.get("vars") or {}, task.get("ansible.builtin.set_fact") or {}]
        for group in groups:
            for name, value in group.items():
                yield name, "\n".join(house.strings(value))

    def _address_keys(self) -> Iterator[str]:
        """Keys that hold addresses in the locks."""

        def walk(value: Any) -> Iterator[str]:
            if isinstance(value, list):
                for entry in value:
                    yield from walk(entry)
            for key, inner in value.items() if isinstance(value, Mapping) else ():
                if any(ADDRESS.match(text) for text in ([inner] if isinstance(inner, str) else house.strings(inner))):
                    direct = isinstance(inner, str) or (isinstance(inner, list) and isinstance(inner[0], str))
                    yield from [str(key)] if direct else []
                yield from walk(inner)

        for path in (self.root / "files/locks").glob("*.yml"):
            yield from walk(house.read(path))

    def carries_address(self, text: str, names: set[str]) -> bool:
        """Whether a text has an address that did not go through the filter."""
        rest = PLAN.sub(" ", MIRRORED.sub(" ", text))
        keys = "|".join(map(re.escape, self.keys))
        return (
            ADDRESS.search(rest) is not None
            or (bool(keys) and re.search(rf"""\.({keys})\b|['"]({keys})['"]""", rest) is not None)
            or any(word in names for word in re.findall(r"\w+", " ".join(re.findall(r"{{.*?}}|{%.*?%}", rest, re.S))))
        )

    def _spoiled(self) -> set[str]:
        """Variables that hold addresses which did not go through the filter."""
        names: set[str] = set()
        while True:
            found = {name for name, text in self.definitions if self.carries_address(text, names)}
            if found <= names:
                return names
            names |= found

    def reaches_filter(self, text: str, seen: frozenset[str] = frozenset()) -> bool:
        if FILTER in text or MODELS.search(text) or LOOPBACK.match(text):
            return True
        if any(name in text for name in OWN_SERVICES):
            return True
        names = set(re.findall(r"\w+", " ".join(re.findall(r"{{.*?}}", text, re.S)))) - seen
        return any(self.reaches_filter(value, seen | names) for name, value in self.definitions if name in names)

    def problems(self) -> list[str]:
        found = [
            f"{name}: addresses of a lock without the mirrors"
            for name, text in self.definitions
            if MODELS.search(text) and not re.search(r"mirrors=(wanmetal|lock)_mirrors", text)
        ]
        for path, task in self.tasks:
            at = f"{path}: {task.get('name')}"
            work = {
                key: value
                for key, value in task.items()
                if key not in ("name", "vars", "ansible.builtin.set_fact", "block", "rescue", "always", "tasks")
            }
            texts = list(house.strings(work))
            if any(self.carries_address(text, self.spoiled) or GIVEN.search(MIRRORED.sub(" ", text)) for text in texts):
                found.append(f"{at}: an address that did not go through the filter")
            for module, options in FETCHERS.items():
                for option in options:
                    given = "\n".join(house.strings((task.get(module) or {}).get(option)))
                    there = option == "signed_by" and KEY_FILES.fullmatch(given)
                    if given and not there and not self.reaches_filter(given):
                        found.append(f"{at}: {option} does not come through the filter")
        for template in sorted(self.root.glob("roles/*/templates/*")):
            if self.carries_address(template.read_text(encoding="utf-8"), self.spoiled):
                found.append(f"{template.relative_to(self.root)}: an address that did not go through the filter")
        return found


def copy(folder: Path) -> Path:
    for name in ("roles", "playbooks", "files"):
        shutil.copytree(house.ROOT / name, folder / name)
    return folder


def test_every_address_goes_through_the_filter() -> None:
    assert Sources(house.ROOT).problems() == []


def places() -> Iterator[tuple[str, int]]:
    """Each use of the filter: a file, and the how many-th of its uses."""
    for path in sorted([*house.ROOT.glob("roles/*/*/*.yml"), *house.ROOT.glob("playbooks/*.yml")]):
        for number in range(path.read_text(encoding="utf-8").count(f"{FILTER}(")):
            yield str(path.relative_to(house.ROOT)), number


PLACES = list(places())


def test_the_filter_is_used() -> None:
    assert len(PLACES) > 2


@pytest.mark.parametrize(("name", "number"), PLACES)
def test_a_filter_that_is_left_out_is_seen(tmp_path: Path, name: str, number: int) -> None:
    path = copy(tmp_path) / name
    parts = path.read_text(encoding="utf-8").split(f"{FILTER}(")
    before, after = f"{FILTER}(".join(parts[: number + 1]), f"{FILTER}(".join(parts[number + 1 :])
    path.write_text(f"{before}default({after}", encoding="utf-8")
    assert Sources(tmp_path).problems() != []


def test_models_without_mirrors_are_seen(tmp_path: Path) -> None:
    path = copy(tmp_path) / "roles/wan_models/tasks/plan.yml"
    path.write_text(path.read_text(encoding="utf-8").replace("mirrors=wanmetal_mirrors", "mirrors=[]"))
    assert Sources(tmp_path).problems() == ["__wan_models_planned: addresses of a lock without the mirrors"]


def add_task(text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "roles/comfyui/tasks/switch.yml"
        path.write_text(f"{path.read_text()}\n- name: New\n  {text}\n")

    return change


def add_variable(text: str, use: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "roles/comfyui/vars/main.yml"
        path.write_text(f"{path.read_text()}\n{text}\n")
        add_task(use)(root)

    return change


def add_template(root: Path) -> None:
    (root / "roles/comfyui/templates/new.j2").write_text("url = https://example.com/x\n")


@pytest.mark.parametrize(
    "change",
    [
        add_task("ansible.builtin.get_url: {url: 'https://example.com/x', dest: /x}"),
        add_task("ansible.builtin.get_url: {url: '{{ comfyui_environment.somewhere }}', dest: /x}"),
        add_task("ansible.builtin.uri: {url: '{{ __comfyui_upstream.comfyui.repository }}'}"),
        add_task("ansible.builtin.command: {argv: [curl, 'https://example.com/x']}"),
        add_task(
            "ansible.builtin.command: {argv: [git, clone, \"{{ __comfyui_upstream['comfyui']['repository'] }}\"]}"
        ),
        add_task("environment: {MIRROR: 'http://example.com'}"),
        add_task("ansible.builtin.deb822_repository: {name: x, signed_by: '{{ comfyui_environment.key }}'}"),
        add_variable("__comfyui_new: https://example.com", "ansible.builtin.debug: {msg: '{{ __comfyui_new }}'}"),
        add_variable(
            "__comfyui_new: https://example.com\n__comfyui_next: '{{ __comfyui_new }}/x'",
            "ansible.builtin.debug: {msg: '{{ __comfyui_next }}'}",
        ),
        add_variable(
            "__comfyui_new: \"{{ [__comfyui_repository | wanmetal.comfyui.mirror([]), 'https://example.com'] }}\"",
            "ansible.builtin.debug: {msg: '{{ __comfyui_new }}'}",
        ),
        add_template,
    ],
)
def test_an_address_past_the_filter_is_seen(tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(copy(tmp_path))
    assert Sources(tmp_path).problems() != []


@pytest.mark.parametrize(
    "change",
    [
        add_task("ansible.builtin.uri: {url: '{{ comfyui_url }}/system_stats'}"),
        add_task("ansible.builtin.uri: {url: 'http://127.0.0.1:8188/{{ comfyui_url }}'}"),
        add_task(
            "ansible.builtin.get_url: {url: \"{{ 'https://a.example' | wanmetal.comfyui.mirror([]) }}\", dest: /x}"
        ),
        add_variable(
            "__comfyui_new: https://example.com\n"
            "__comfyui_next: \"{{ [__comfyui_new] | map('wanmetal.comfyui.mirror', wanmetal_mirrors) }}\"",
            "ansible.builtin.uri: {url: '{{ __comfyui_repository }}', body: '{{ __comfyui_next }}'}",
        ),
    ],
)
def test_what_is_in_order_is_not_blamed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(copy(tmp_path))
    assert Sources(tmp_path).problems() == []
