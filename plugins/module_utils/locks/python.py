"""Locks of Python packages: what goes into a resolution by uv, and what comes out of it, told for people."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    from tomllib import loads as _read_toml
else:

    def _read_toml(_unused: str) -> dict[str, Any]:
        raise LockError("dependency groups are read with Python 3.11 or later")


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_PIN = re.compile(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)(?: ; ([^\\]*?))?(?: \\)?$")
_COMMENT = re.compile(r"(^|\s)#.*$")
LINUX = "platform_machine == 'x86_64' and sys_platform == 'linux'"
"""The marker of every package in a lock that is made for these hosts alone, where it goes without saying."""


class LockError(Exception):
    """What is wrong with the sources, or with what came out."""


@dataclass(frozen=True)
class Requirement:
    """One line of a source: what ``source`` wants of a package."""

    source: str
    package: str
    line: str

    @property
    def wants(self) -> str:
        """Return the line without the name."""
        return self.line[len(_NAME.match(self.line).group()) :].strip() or "any version"  # type: ignore[union-attr]


@dataclass(frozen=True)
class Pin:
    """A package in a lock; ``marker`` is empty when it is for every platform."""

    package: str
    version: str
    marker: str
    hashes: frozenset[str]
    wanted_by: tuple[str, ...]


def normalised(name: str) -> str:
    """Return a package name as indexes have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_source(source: str, text: str) -> list[Requirement]:
    """Return the requirements of a source; a LockError names the line that cannot be locked."""
    found = []
    for line in text.removeprefix("\ufeff").replace("\\\n", " ").splitlines():
        line = _COMMENT.sub("", line).strip()
        match = _NAME.match(line)
        if not line:
            continue
        if match is None or "://" in line:
            raise LockError(
                f"{source}: the line {line!r} cannot be locked. Only packages by name can, no options, files or "
                "addresses; give the requirements of this source yourself"
            )
        found.append(Requirement(source, normalised(match.group()), line))
    return found


def without(lines: Iterable[str], packages: Iterable[str]) -> list[str]:
    """Return the lines of a requirements file but those that ask for some packages."""
    unwanted = {normalised(name) for name in packages}
    return [line for line in lines if not ((match := _NAME.match(line)) and normalised(match.group()) in unwanted)]


def read_group(pyproject: str, group: str) -> list[str]:
    """Return the requirements of a dependency group of a pyproject.toml."""
    try:
        groups = _read_toml(pyproject).get("dependency-groups", {})
    except ValueError as error:
        raise LockError(f"pyproject.toml is no valid TOML: {error}") from error
    if group not in groups:
        raise LockError(f"pyproject.toml has no dependency group {group!r}; it has: {', '.join(groups) or 'none'}")
    lines = groups[group]
    if not all(isinstance(line, str) for line in lines):
        raise LockError(f"dependency group {group!r} must hold requirements only, found {lines!r}")
    return list(lines)


def parse_lock(text: str) -> dict[tuple[str, str], Pin]:
    """Return the pins of a lock by package and marker."""
    pins: dict[tuple[str, str], Pin] = {}
    head: re.Match[str] | None = None
    hashes: list[str] = []
    wanted_by: list[str] = []

    def close() -> None:
        if head is not None:
            package, version, marker = normalised(head[1]), head[2], head[3] or ""
            pins[package, marker] = Pin(package, version, marker, frozenset(hashes), tuple(wanted_by))

    for line in text.splitlines():
        match = _PIN.match(line)
        if match:
            close()
            head, hashes, wanted_by = match, [], []
        elif head is not None and "--hash=" in line:
            hashes.append(line.split("--hash=", 1)[1].split()[0])
        elif head is not None and line.startswith("    #"):
            name = line.strip("# ").removeprefix("via").strip().removeprefix("-r ")
            # constraints and overrides only limit what others want
            if name and not name.startswith("-"):
                wanted_by.append(name)
    close()
    return pins


def changes(before: str, after: str) -> list[str]:
    """Tell what moved between two locks, one line for each package and marker."""
    old, new = parse_lock(before), parse_lock(after)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        name = key[0] + (f" ({key[1]})" if key[1] else "")
        if was is None and now is not None:
            lines.append(f"added   {name} {now.version}{_why(now)}")
        elif now is None and was is not None:
            lines.append(f"removed {name} {was.version}")
        elif was is not None and now is not None and was.version != now.version:
            lines.append(f"moved   {name} {was.version} -> {now.version}{_why(now)}")
        elif was is not None and now is not None and was.hashes != now.hashes:
            lines.append(f"files   {name} {now.version}: {_files(was.hashes, now.hashes)}")
    return lines


def _why(pin: Pin) -> str:
    return f", wanted by {', '.join(pin.wanted_by)}" if pin.wanted_by else ""


def _files(was: frozenset[str], now: frozenset[str]) -> str:
    return ", ".join(f"{len(found)} {what}" for found, what in ((now - was, "new"), (was - now, "gone")) if found)


def conflict(said: str, requirements: Iterable[Requirement]) -> str:
    """Put what uv says when it fails into a message that names who wants what, without credentials."""
    said = re.sub(r"//[^/@\s]+@", "//", said.strip())
    named = {normalised(word) for word in _NAME.findall(said)}
    wanted: dict[str, list[Requirement]] = defaultdict(list)
    for one in requirements:
        if one.package in named:
            wanted[one.package].append(one)
    if "No solution found" not in said or not wanted:
        return f"uv failed:\n{said}"
    lines = ["the requirements contradict each other, or ask for what is not there."]
    for package, wishes in sorted(wanted.items()):
        lines.append(f"{package}: " + "; ".join(f"{one.source} wants {one.wants}" for one in wishes))
    return "\n".join([*lines, f"uv says: {said}"])


def command(uv: str, python: str, sources: Sequence[str], target: Target) -> list[str]:
    """Return the command that resolves the files ``sources`` of the working folder into lock.txt there."""
    return [
        uv,
        "pip",
        "compile",
        *sources,
        *(["--constraints=constraints"] if target.constraints else []),
        *(["--overrides=overrides"] if target.overrides else []),
        "--universal",
        *(["--upgrade"] if target.upgrade else [f"--upgrade-package={name}" for name in target.upgrade_packages]),
        f"--python-version={target.python_version}",
        f"--python={python}",
        *(["--only-binary=:all:"] if target.only_binary else []),
        "--generate-hashes",
        "--no-header",
        "--quiet",
        "--output-file=lock.txt",
    ]


@dataclass(frozen=True)
class Target:
    """What is resolved for: a Python and all later ones, on every platform or on the hosts' alone."""

    python_version: str
    linux: bool = False
    constraints: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    upgrade: bool = False
    upgrade_packages: tuple[str, ...] = ()
    only_binary: bool = False


def write_sources(folder: Path, sources: Sequence[tuple[str, str]], target: Target) -> list[Requirement]:
    """Write the sources (name, text) as files of these names, and return all requirements."""
    requirements: list[Requirement] = []
    for name, text in sources:
        if (
            not _NAME.fullmatch(name)
            or (folder / name).exists()
            or name in {"constraints", "overrides", "lock.txt", "pyproject.toml"}
        ):
            raise LockError(f"a source needs a name of its own, of letters, digits, '.', '_' and '-', found {name!r}")
        found = parse_source(name, text)
        requirements += found
        (folder / name).write_text("".join(f"{one.line}\n" for one in found), encoding="utf-8")
    for name, lines in (("constraints", target.constraints), ("overrides", target.overrides)):
        requirements += parse_source(f"the {name}", "\n".join(lines))
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if target.linux:
        (folder / "pyproject.toml").write_text(f'[tool.uv]\nenvironments = ["{LINUX}"]\n', encoding="utf-8")
    return requirements


def plain(text: str) -> str:
    """Return a lock of the hosts' platform without its markers."""
    return text.replace(f" ; {LINUX}", "").replace(f" and {LINUX}", "")


def header(names: Sequence[str], target: Target, note: str = "") -> str:
    """Return the first lines of a lock."""
    return (
        "# Made by playbooks/lock.yml: change its sources, not this file.\n"
        f"# Python {target.python_version}, {'Linux on x86_64' if target.linux else 'every platform'}, "
        f"from: {', '.join(names)}\n"
    ) + (f"# {note}\n" if note else "")
