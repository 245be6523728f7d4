"""Commits of ComfyUI and of node packs that are of one time, and how their pins are moved to them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.checkouts import git_environment

COMMIT = re.compile(r"[0-9a-f]{40}")


class CoreError(Exception):
    """Why pins cannot be moved, with what to do."""


@dataclass(frozen=True)
class Move:
    """A pin, where it was and where it goes."""

    name: str
    before: str
    after: str
    date: datetime
    version_before: str = ""
    version: str = ""

    @property
    def told(self) -> str:
        """For people."""
        before, after = self.version_before or self.before[:12], self.version or self.after[:12]
        same = self.before == self.after
        return f"{self.name} {after} of {self.date.date()}" + (" stays" if same else f", in place of {before}")


class History:
    """The commits of a repository, without their files."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._url = folder, url

    def fetch(self) -> None:
        """Bring the default branch and the tags here."""
        if not (self._folder / "HEAD").exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._git("init", "--quiet", "--bare")
        self._git("config", "remote.origin.url", self._url)
        self._fetch("+HEAD:refs/wanmetal/newest", "+refs/tags/*:refs/tags/*")

    def find(self, wanted: str) -> str:
        """The commit that a version, a tag or a commit stands for."""
        if COMMIT.fullmatch(wanted):
            if not self._is_there(wanted):
                self._fetch(wanted)
            return wanted
        newest = self._git("tag", "--list", "v[0-9]*", "--sort=-version:refname").splitlines()[:5]
        if wanted == "newest" and newest:
            wanted = newest[0]
        for tag in (f"v{wanted}", wanted):
            if self._is_there(f"refs/tags/{tag}"):
                return self._git("rev-parse", f"refs/tags/{tag}^{{commit}}")
        there = f"the newest there are {', '.join(newest)}" if newest else "it has no tags, so name a commit"
        raise CoreError(f"comfyui is {wanted!r}, and {self._url} has no tag v{wanted.removeprefix('v')}; {there}")

    def version(self, commit: str) -> str:
        """The version that a tag says; between two, the earlier one with the commit."""
        try:
            told = self._git("describe", "--tags", "--match=v[0-9]*", "--abbrev=8", commit)
        except CoreError as error:
            raise CoreError(f"{self._url} has no tag of a version at or before {commit[:12]}") from error
        version, _unused, beyond = told.removeprefix("v").partition("-")
        return f"{version}+{beyond.rpartition('-g')[2]}" if beyond else version

    def date(self, commit: str) -> datetime:
        """When a commit was made."""
        return datetime.fromtimestamp(int(self._git("show", "--no-patch", "--format=%ct", commit)), timezone.utc)

    def newest(self, before: datetime) -> str:
        """The newest commit of the default branch that is not younger; empty where there is none."""
        until = f"--before={before.isoformat()}"
        return self._git("rev-list", "--first-parent", "--max-count=1", until, "refs/wanmetal/newest")

    def _is_there(self, name: str) -> bool:
        try:
            self._git("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}")
        except CoreError:
            return False
        return True

    def _fetch(self, *refs: str) -> None:
        self._git("fetch", "--quiet", "--no-tags", "--filter=tree:0", "origin", *refs)

    def _git(self, *arguments: str) -> str:
        try:
            # pylint: disable-next=ansible-bad-function
            done = subprocess.run(
                ["git", f"--git-dir={self._folder}", *arguments],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                env=git_environment({"GIT_ASKPASS": "true", "GIT_CONFIG_NOSYSTEM": "1"}),
            )
        except FileNotFoundError as error:
            raise CoreError("git is not installed on this machine: install the package git") from error
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"git {arguments[0]} ended with {done.returncode}"]
            raise CoreError(f"{self._url}: {said[-1]}")
        return done.stdout.strip()


def history(cache_dir: Path, url: str) -> History:
    """The history of a repository, fetched."""
    found = History(cache_dir / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', url)}.git", url)
    found.fetch()
    return found


def ages(histories: Mapping[str, History], pins: Mapping[str, str], now: datetime) -> list[str]:
    """How old each pin is, and how much newer its repository is; a line for each."""
    lines = []
    for name, found in histories.items():
        made, newest = found.date(found.find(pins[name])), found.date("refs/wanmetal/newest")
        line = f"{name} {pins[name][:12]} of {made.date()}, {(now - made).days} days old"
        lines.append(f"{line}; the newest commit is of {newest.date()}" if newest > made else line)
    return lines


def of_one_time(
    core: History,
    packs: Mapping[str, History],
    pins: Mapping[str, str],
    comfyui: Mapping[str, str],
    wanted: str,
    named: Mapping[str, str],
    days: int,
) -> list[Move]:
    """ComfyUI as it is wanted, and each pack as it is named, or else the newest that is not ``days`` younger."""
    if strangers := [name for name in named if name not in pins]:
        raise CoreError(f"comfyui_packs names {', '.join(strangers)}; the packs are {', '.join(pins)}")
    commit = core.find(wanted)
    date = core.date(commit)
    moves = [Move("ComfyUI", comfyui["commit"], commit, date, comfyui["version"], core.version(commit))]
    latest = date + timedelta(days=days)
    for name, found in packs.items():
        after = found.find(named[name]) if name in named else found.newest(latest) or pins[name]
        moves.append(Move(name, pins[name], after, found.date(after)))
    return moves


def edit(text: str, moves: list[Move]) -> str:
    """The text of a lock with the pins moved, and nothing else changed."""
    for move in moves:
        if move.version:
            old = re.escape(move.version_before)
            version = re.compile(rf"^(comfyui:\n(?: .*\n)*?  version: )['\"]?{old}['\"]?$", re.MULTILINE)
            text = version.sub(rf"\g<1>{move.version}", text)
        text = text.replace(move.before, move.after)
    return text
