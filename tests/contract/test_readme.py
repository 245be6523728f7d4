"""The commands, settings and links of the documents. The end-to-end tests run the main commands."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.cli.galaxy import GalaxyCLI
from ansible.cli.playbook import PlaybookCLI
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import settings
from ansible_collections.wanmetal.comfyui.tests.contract import house
from ansible_collections.wanmetal.comfyui.tests.lab import lab
from ansible_collections.wanmetal.comfyui.tests.run import FAULTS, STEPS
from ansible_collections.wanmetal.comfyui.tools import init

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "roles/*/*.md")
    for path in house.ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
HERE = {str(path.relative_to(house.ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
YOURS = {"my_hosts", "my_fleet"}
"""Inventories that the reader is to have."""
FOLDERS_OF_YOURS = {"wanmetal_locks_dir"}
"""Settings whose value has to be there on the reader's machine."""

# What a code span begins with that is a command.
COMMAND = re.compile(r"(\./|\. |ansible-|molecule |pytest |ssh |systemctl |journalctl |tools/|tests/).* ")
SPECS = settings.load_specs()


# -- what the documents say


def blocks(text: str, language: str) -> Iterator[str]:
    yield from re.findall(rf"(?ms)^ *```{language}\n(.*?)^ *```", text)


def commands(text: str) -> Iterator[str]:
    for block in blocks(text, "sh"):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())
    spans = re.findall(r"`([^`]+)`", re.sub(r"(?ms)^ *```.*?^ *```", "", text))
    yield from (span for span in (" ".join(span.split()) for span in spans) if COMMAND.match(span))


def links(text: str) -> Iterator[str]:
    yield from re.findall(r"\]\(((?!https?:)[^)]+)\)", re.sub(r"(?ms)^ *```.*?^ *```", "", text))


# -- whether it is so


def playbook(words: list[str]) -> None:
    PlaybookCLI(["ansible-playbook", *words]).parse()
    names = list(_positional(words))
    assert names, "no playbook"
    known: set[str] = set()
    for name in names:
        path = house.ROOT / (
            name if name.endswith(".yml") else f"playbooks/{name.removeprefix('wanmetal.comfyui.')}.yml"
        )
        assert name.endswith(".yml") or name.startswith("wanmetal.comfyui.")
        assert path.is_file(), f"{name} is no playbook"
        for play in house.read(path):
            known |= {*(play.get("vars") or {}), *(entry["name"] for entry in play.get("vars_prompt") or [])}
        known |= set(re.findall(r"\b(\w+) (?:is defined|\| default\()", path.read_text()))
    _variables(words, known)
    _inventories(words)


def _positional(words: list[str]) -> Iterator[str]:
    takes_value = {"-i", "-e", "-l", "--limit", "--tags", "--skip-tags", "--extra-vars", "--inventory"}
    skip = False
    for word in words:
        if not skip and not word.startswith("-"):
            yield word
        skip = word in takes_value


def _values(words: list[str], *options: str) -> Iterator[str]:
    for option, value in itertools.pairwise(words):
        if option in options:
            yield value


def _variables(words: list[str], known: set[str]) -> None:
    for given in _values(words, "-e", "--extra-vars"):
        values = json.loads(given) if given.startswith("{") else dict([given.split("=", 1)])
        for name, value in values.items():
            assert name in known | SPECS.known, f"nothing takes {name}"
            if name in SPECS.options and name not in FOLDERS_OF_YOURS:
                assert settings.check({name: value}, [name], SPECS, lambda _: b"#!") == []


def _inventories(words: list[str]) -> None:
    for name in _values(words, "-i", "--inventory"):
        assert name in YOURS or (house.ROOT / name).exists(), f"there is no inventory {name}"


def deploy(words: list[str]) -> None:
    if words and words[0].startswith("--lab-"):
        assert words[0] in ("--lab-stop", "--lab-remove")
        assert words[1:] in ([], ["--all"])
        assert f"./deploy {words[0]}" in (house.ROOT / "deploy").read_text()
    elif words and words[0] == "init":
        init.parser().parse_args(words[1:])
    elif words and re.fullmatch(r"[a-z]+", words[0]) and words != ["completion"]:
        path = house.ROOT / "playbooks" / f"{words[0]}.yml"
        assert path.is_file(), f"{words[0]} is no operation"
        rest = words[1:]
        if rest and not rest[0].startswith("-"):
            argument = re.search(r"(?m)^# argument: (\w+)=.*?([.]{3})?$", path.read_text())
            assert argument, f"{words[0]} takes no {rest[0]}"
            taken = [*itertools.takewhile(lambda word: not word.startswith("-"), rest)] if argument[2] else rest[:1]
            rest = ["-e", f"{argument[1]}={' '.join(taken)}", *rest[len(taken) :]]
        if rest != ["--help"]:
            playbook([f"playbooks/{words[0]}.yml", *rest])
    elif words not in (["--help"], ["completion"]):
        playbook(["site.yml", *(word for word in words if word != "--lab")])


def test(words: list[str]) -> None:
    assert set(words) <= {*STEPS, *FAULTS, "--full", "--faults", "--list", "--help"}


test.__test__ = False  # type: ignore[attr-defined]


def program(path: str) -> Callable[[list[str]], None]:
    def check(_: list[str]) -> None:
        assert (house.ROOT / path).is_file()

    return check


def molecule(words: list[str]) -> None:
    assert words[0] in {"test", "converge", "verify", "login", "destroy"}
    for name in _values(words, "-s", "--scenario-name"):
        assert (house.ROOT / "molecule" / name / "molecule.yml").is_file(), f"{name} is no scenario"


def galaxy(words: list[str]) -> None:
    GalaxyCLI(["ansible-galaxy", *words]).parse()
    version = house.read(house.ROOT / "galaxy.yml")["version"]
    for word in words:
        if word.endswith(".tar.gz"):
            assert word == f"wanmetal-comfyui-{version}.tar.gz"


def ssh(words: list[str]) -> None:
    port = SPECS.options["comfyui_port"]["default"]
    tunnels = list(_values(words, "-L"))
    assert tunnels == [f"{port}:127.0.0.1:{port}"]


UNITS = {path.name.partition(".")[0] for path in house.ROOT.glob("roles/*/templates/*.service.j2")}


def unit(words: list[str]) -> None:
    assert UNITS & {*words} or words[0] in ("--failed", "list-jobs") or words == ["status"]


def known_file(words: list[str]) -> None:
    assert all(word.startswith(("-", "/opt/wanmetal/")) for word in words)


def activate(words: list[str]) -> None:
    assert words in (["./.venv/deploy/bin/activate"], [".venv/deploy/bin/activate"], [".venv/test/bin/activate"])


def lab_host(words: list[str]) -> None:
    lab.parser().parse_args(words)


def venv(words: list[str]) -> None:
    assert (house.ROOT / f"files/locks/python/{words[0]}.txt").is_file()


def collection(words: list[str]) -> None:
    assert words == [] or words[0] in {"docs", "importer", "publish", "sanity"}
    assert (words[:1] == ["publish"]) <= (len(words) == 2)


def change_folder(words: list[str]) -> None:
    assert (house.ROOT / words[0]).is_dir()


def anything(_: list[str]) -> None:
    """A program of somebody else's, whose arguments are not looked at."""


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "./deploy": deploy,
    "./test": test,
    "tools/collection": collection,
    ".": activate,
    ".ci/run": program(".ci/run"),
    "ansible-galaxy": galaxy,
    "ansible-playbook": playbook,
    "ansible-vault": anything,
    "antsibull-changelog": anything,
    "cat": known_file,
    "cd": change_folder,
    "git": anything,
    "journalctl": unit,
    "ls": known_file,
    "mkdir": anything,
    "molecule": molecule,
    "pytest": anything,
    "ssh": ssh,
    "sudo": anything,
    "systemctl": unit,
    "tests/lab/lab.py": lab_host,
    "tools/docs.py": program("tools/docs.py"),
    "tools/validate-workflows": program("tools/validate-workflows"),
    "tools/venv": venv,
}


def check(command: str) -> None:
    """Fail where a command of the documents could not be given."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    name = words[0].removeprefix(".venv/test/bin/").removeprefix(".venv/deploy/bin/")
    if name == "python":
        words = words[1:]
        name = words[0]
    assert name in PROGRAMS, f"{name} is unknown to this test"
    PROGRAMS[name](words[1:])


COMMANDS = [(name, command) for name, text in HERE.items() for command in commands(text)]


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_a_command_can_be_given(name: str, command: str) -> None:
    assert name
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "./deploy --nonsense",
        "./deploy -e comfyui_prot=8188",
        "./deploy -e comfyui_port=80",
        "./deploy -e comfyui_vram_mode=lots",
        "./deploy -i nowhere",
        "./deploy --lab-burn",
        "./deploy verifi",
        "./deploy verify gpu1",
        "./deploy init --host gpu1 --huggingface-token hf_x",
        "./test nothing",
        "ansible-playbook playbooks/nothing.yml",
        "ansible-playbook wanmetal.comfyui.nothing",
        "ansible-playbook playbooks/site.yml -e lock_upgrade=true",
        "ansible-galaxy collection biuld",
        "ansible-galaxy collection install wanmetal-comfyui-0.0.1.tar.gz",
        "molecule test -s nothing",
        "ssh -L 8189:127.0.0.1:8188 gpu1",
        "systemctl status comfy",
        "tests/lab/lab.py raise lab1",
        "tools/venv nothing",
        "tools/collection nothing",
        "tools/collection publish",
        "rm -rf x",
    ],
)
def test_a_wrong_command_is_seen(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(command)


def test_the_commands_are_found() -> None:
    assert len([1 for name, _ in COMMANDS if name == "README.md"]) > 15
    assert list(commands("`./deploy --lab`\n```sh\na  # b\n\nc \\\n  d\n```\n`x y` `tools/venv test`")) == [
        "a  # b",
        "c    d",
        "./deploy --lab",
        "tools/venv test",
    ]


MINE = {
    title: {"class_type": kind, "inputs": {key: "x"}, "_meta": {"title": title}}
    for title, kind, key in (
        ("Start image", "LoadImage", "image"),
        ("Prompt", "CLIPTextEncode", "text"),
        ("Save", "SaveImage", "filename_prefix"),
    )
}
"""The graph of docs/handler.md's own workflow."""


YAML = [(name, block) for name, text in HERE.items() for block in blocks(text, "yaml") if not name.startswith("roles/")]


@pytest.mark.parametrize(("name", "block"), YAML)
def test_settings_are_in_order(name: str, block: str) -> None:
    values: dict[str, Any] = yaml.safe_load(re.sub(r"\{\{ (vault_\w+) \}\}", r"\1", block))
    assert name
    for group in {"gpu_hosts", "monitoring_hosts", "queue_hosts"} & values.keys():  # an inventory
        values |= {key: value for host in values.pop(group)["hosts"].values() for key, value in (host or {}).items()}
    assert set(values) <= SPECS.known
    yours = {name: value for name, value in values.items() if name not in FOLDERS_OF_YOURS}
    held = {".json": json.dumps(MINE).encode()}
    assert settings.check(yours, yours, SPECS, lambda path: held.get(Path(path).suffix, b"#!")) == []


def test_the_first_page_of_settings_shows_defaults() -> None:
    given: dict[str, Any] = {}
    for block in blocks(HERE["docs/settings.md"], "yaml"):
        given |= yaml.safe_load(block)
    assert given == {name: SPECS.options[name]["default"] for name in given}


PLAYBOOKS = [(name, block) for name, text in HERE.items() for block in blocks(text, "yml")]


@pytest.mark.parametrize(("name", "block"), PLAYBOOKS)
def test_a_playbook_of_one_s_own_is_read(name: str, block: str, tmp_path: Path) -> None:
    """Its plays are listed by Ansible, and it sets what there is."""
    assert name
    for play in yaml.safe_load(block):
        values = play.get("vars", {})
        assert settings.check(values, values, SPECS, lambda _: b"#!") == []
    path = tmp_path / "mine.yml"
    path.write_text(block)
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "--list-tasks", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=house.ROOT)
    assert done.returncode == 0, done.stderr
    assert "wanmetal.comfyui.comfyui :" in done.stdout


def anchor(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(("name", "link"), [(name, link) for name, text in HERE.items() for link in links(text)])
def test_a_link_leads_somewhere(name: str, link: str) -> None:
    file, _, part = link.partition("#")
    path = (house.ROOT / name).parent / file if file else house.ROOT / name
    assert path.exists(), f"{name} links to {link}"
    if part:
        headings = re.findall(r"(?m)^#+ (.+)$", path.read_text())
        assert part in map(anchor, headings), f"{name} links to {link}"


def test_every_operation_has_a_line() -> None:
    shown = re.findall(r"(?m)^\|[^|]+\| `\./deploy(?: ([a-z]+))?[^|]*` \|$", HERE["README.md"])
    every = {path.stem for path in house.ROOT.glob("playbooks/*.yml")} - {"hosts"}  # the others import it
    assert {name or "site" for name in shown} == every
    assert len(shown) == len(every) + 1, "only a deploy has two lines"


def test_troubleshooting_has_every_kind_of_problem() -> None:
    kinds = SPECS.options["preflight_skip"]["choices"]
    listed = re.findall(r"(?m)^\| `(\w+)` \|", HERE["docs/troubleshooting.md"])
    assert sorted(listed) == sorted(kinds)


def test_developing_names_every_folder() -> None:
    text = next(blocks(HERE["docs/developing.md"], "text"))
    for line in text.splitlines():
        for name in line[:32].split():
            assert (house.ROOT / name).exists(), f"there is no {name}"


def test_developing_names_tests_that_there_are() -> None:
    named = re.findall(r"`((?:unit|contract)/\w+\.py)::(\w+)`", HERE["docs/developing.md"])
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (house.ROOT / "tests" / file).read_text(), f"{file} has no {name}"
