from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house
from packaging.requirements import Requirement

LOCKS = house.ROOT / "files/locks"
REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+(?:\[[a-z0-9,_-]+\])?==\S+(?: ; [^\\]+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
MOVING = re.compile(r"latest|main|master|head|nightly|stable", re.IGNORECASE)


def pins(value: Any, at: str = "") -> Iterator[str]:
    """What is wrong with the pins in a lock: each says where and what."""
    if isinstance(value, list):
        for number, entry in enumerate(value):
            yield from pins(entry, f"{at}[{number}]")
    if not isinstance(value, Mapping):
        return
    if "repository" in value and "commit" not in value:
        yield f"{at} has a repository and no commit"
    if ("url" in value or "urls" in value) and "sha256" not in value:
        yield f"{at} has an address and no sha256"
    if {"name", "version"} <= value.keys() and "sha256" not in value:
        yield f"{at} has a package and no sha256"
    for key, inner in value.items():
        here = f"{at}.{key}".removeprefix(".")
        if key == "commit" and not re.fullmatch(r"[0-9a-f]{40}", str(inner)):
            yield f"{here} is no commit: {inner}"
        # A hash that nobody knows is null, which the download compares with what the host states.
        if str(key).endswith("sha256") and inner is not None and not re.fullmatch(r"[0-9a-f]{64}", str(inner)):
            yield f"{here} is no sha256: {inner}"
        if key == "version" and (not isinstance(inner, str) or not inner or MOVING.fullmatch(inner)):
            yield f"{here} is no version: {inner!r}"
        if key in ("bytes", "size") and inner is not None and (not isinstance(inner, int) or inner <= 0):
            yield f"{here} is no number of bytes: {inner!r}"
        yield from pins(inner, here)


def requirements(text: str) -> Iterator[str]:
    """What is wrong in a hash-locked set of Python packages."""
    lines = [
        line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        yield "it is empty"
    for line in lines:
        requirement, *hashes = (part.strip() for part in re.split(r"\s(?=--hash)", line.strip()))
        if "://" in line or " @ " in line:
            yield f"{requirement} names an address"
        if not REQUIREMENT.fullmatch(requirement):
            yield f"{requirement} is not pinned"
        if not hashes:
            yield f"{requirement} has no hash"
        yield from (f"{requirement}: {found} is no hash" for found in hashes if not HASH.fullmatch(found))


def named(value: Any, key: str) -> Iterator[Any]:
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from named(inner, key)
    if isinstance(value, Mapping) and key in value:
        yield value[key]


YAML_LOCKS = sorted(LOCKS.glob("*.yml"))
PYTHON_LOCKS = sorted((LOCKS / "python").glob("*.txt"))


@pytest.mark.parametrize("path", YAML_LOCKS, ids=lambda path: path.name)
def test_pins(path: Path) -> None:
    assert list(pins(house.read(path))) == []


@pytest.mark.parametrize("path", PYTHON_LOCKS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_by_hash(path: Path) -> None:
    assert list(requirements(path.read_text())) == []


def test_the_lock_is_not_empty() -> None:
    upstream = house.read(LOCKS / "upstream.yml")
    assert list(named(upstream, "commit"))
    assert list(named(upstream, "sha256"))
    assert len(PYTHON_LOCKS) >= 5


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("comfyui", "commit"), "f8b981a", "comfyui.commit is no commit: f8b981a"),
        (("comfyui", "commit"), "F" * 40, f"comfyui.commit is no commit: {'F' * 40}"),
        (("comfyui", "version"), "latest", "comfyui.version is no version: 'latest'"),
        (("comfyui", "version"), 0.3, "comfyui.version is no version: 0.3"),
        (("practice", "package", "sha256"), "", "practice.package.sha256 is no sha256: "),
        (("practice", "package", "tree_sha256"), "a" * 63, f"practice.package.tree_sha256 is no sha256: {'a' * 63}"),
        (("practice", "package", "bytes"), "1 GB", "practice.package.bytes is no number of bytes: '1 GB'"),
        (("new",), {"repository": "https://example.com/x.git"}, "new has a repository and no commit"),
        (("new",), {"name": "a", "version": "1.0"}, "new has a package and no sha256"),
        (("new",), [{"url": "https://example.com/x"}], "new[0] has an address and no sha256"),
    ],
)
def test_a_bad_pin_is_seen(path: tuple[str, ...], value: Any, problem: str) -> None:
    upstream = copy.deepcopy(house.read(LOCKS / "upstream.yml"))
    place = upstream
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert list(pins(upstream)) == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("a==1\n", "a==1 has no hash"),
        (f"a>=1 --hash=sha256:{'0' * 64}", "a>=1 is not pinned"),
        (f"a==1 \\\n    --hash=sha256:{'0' * 63}", f"a==1: --hash=sha256:{'0' * 63} is no hash"),
        (f"a==1 --hash=md5:{'0' * 64}", f"a==1: --hash=md5:{'0' * 64} is no hash"),
        (f"a @ https://example.com/a.whl --hash=sha256:{'0' * 64}", "a @ https://example.com/a.whl names an address"),
        ("--index-url https://example.com", "--index-url https://example.com names an address"),
    ],
)
def test_a_bad_requirement_is_seen(text: str, problem: str) -> None:
    assert next(iter(requirements(text))) == problem


def test_there_is_a_lock_for_every_choice() -> None:
    options = house.role_file("wanmetal", "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    upstream = house.read(LOCKS / "upstream.yml")
    assert set(upstream["lanes"]) == set(options["wanmetal_lane"]["choices"])
    names = [
        (f"{variant}-{lane}", lane)
        for variant in options["wanmetal_variant"]["choices"]
        if variant != "practice"
        for lane in options["wanmetal_lane"]["choices"]
    ]
    for name, lane in [*names, ("practice", "cu128")]:
        assert name in upstream["environments"]
        text = (LOCKS / f"python/{name}.txt").read_text()
        limits = [Requirement(line) for line in upstream["lanes"][lane]["python_constraints"]]
        for version in [one for one in options["wanmetal_python"]["choices"] if one != "auto"]:
            pins = dict(pinned(text, version))
            broken = [one for one in limits if one.name in pins and pins[one.name] not in one.specifier]
            assert broken == [], f"{name}, {version}"
            assert {"torch", "torchaudio", "torchvision", "triton"} <= pins.keys()


def pinned(text: str, python: str) -> Iterator[tuple[str, str]]:
    """Packages of a lock that a Python gets, each once."""
    found: set[str] = set()
    for line in re.findall(r"^(\S+==\S+(?: ; [^\\]+)?)", text, re.MULTILINE):
        one = Requirement(line)
        if one.marker is None or one.marker.evaluate({"python_full_version": f"{python}.0"}):
            assert one.name not in found, f"{one.name} is there twice for Python {python}"
            found.add(one.name)
            yield one.name, str(one.specifier).removeprefix("==")
