"""An installation of ComfyUI that somebody else has made: its packs, models and options. Nothing is changed."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.existing import below
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.record import sha256
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import (
    opened_regular,
    read_regular,
    readable,
)

MODEL = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf", ".onnx", ".torchscript")

_OWN_FILES = {"websocket_image_save.py", "example_node.py.example"}
_VERSION = re.compile(r'^__version__\s*=\s*"([^"]+)"', re.MULTILINE)
_GIT_SECONDS = 60


class InstallationError(Exception):
    """A folder that is no installation, and what to do."""


def look(folder: Path, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Look at a folder; ``known`` are the files of the catalogue by id, with size and sha256."""
    folder = _real(folder)
    if not folder.is_dir():
        raise InstallationError(
            f"there is no folder {folder} on this host, and no such file on the machine that runs Ansible. "
            "Name the folder of a ComfyUI, such as /srv/ComfyUI"
        )
    if not any((folder / name).exists() for name in ("main.py", "custom_nodes", "models")):
        inner = [one.parent for one in folder.glob("*/main.py") if (one.parent / "custom_nodes").is_dir()]
        raise InstallationError(
            f"{folder} is no folder of ComfyUI: it has none of main.py, custom_nodes and models"
            + (f". Name {inner[0]}" if inner else "")
        )
    models = _real(folder / "models")
    version = _VERSION.search(_text(folder / "comfyui_version.py"))
    return {
        "path": readable(folder),
        "version": version[1] if version else "",
        "commit": _checkout(folder).get("commit", ""),
        "packs": list(_packs(folder / "custom_nodes")),
        "models_dir": readable(models),
        "models": list(_models(models, known)),
        "extra_model_paths": _text(folder / "extra_model_paths.yaml"),
        "arguments": _arguments(folder / "main.py"),
        "workflows": readable(folder / "user/default/workflows") if _has_workflows(folder / "user") else "",
    }


def _real(path: Path) -> Path:
    """Where links lead; a path whose links lead in a circle stays as it is."""
    return Path(os.path.realpath(path))


def _has_workflows(users: Path) -> bool:
    return any(
        path.name.endswith(".json") and path.relative_to(users).parts[1:2] == ("workflows",)
        for path, _found in below(users)
    )


def _text(path: Path) -> str:
    try:
        return read_regular(path, 1024 * 1024).decode("utf-8", "replace")
    except OSError:
        return ""


# -- node packs


def _packs(folder: Path) -> Iterator[dict[str, Any]]:
    disabled = folder / ".disabled"
    for one in [*_sorted(folder), *_sorted(disabled)]:
        off = one.parent == disabled or one.name.endswith(".disabled")
        name = readable(one).rpartition("/")[2].removesuffix(".disabled")
        if not name or name.startswith((".", "__")) or name in _OWN_FILES:
            continue
        if not one.is_dir():
            if name.endswith(".py"):
                yield {"name": name, "disabled": off, "problem": "it is a single file and no git repository"}
            continue
        files = ["requirements.txt"] if (one / "requirements.txt").is_file() else []
        yield {"name": name, "disabled": off, "requirements": files, **_checkout(one)}


def _sorted(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _checkout(folder: Path) -> dict[str, Any]:
    """Say what a checkout is of, or why it cannot be had again."""
    if not (folder / ".git").exists():
        project = _text(folder / "pyproject.toml")
        name, version, repository = (
            match[1] if (match := re.search(rf'^{key}\s*=\s*"([^"]+)"', project, re.MULTILINE)) else ""
            for key in ("name", "version", "(?:R|r)epository")
        )
        if (folder / ".tracking").exists() and name:
            of = f" of {repository}" if repository else ""
            return {"problem": f"it is {name} {version}{of} of ComfyUI's registry, which names no commit"}
        return {"problem": "it is no git repository"}
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        remotes = _git(folder, "remote").split()
        remote = "origin" if "origin" in remotes else (remotes or [""])[0]
        repository = _git(folder, "config", "--get", f"remote.{remote}.url") if remote else ""
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no").splitlines()
        pushed = _git(folder, "for-each-ref", "--contains", commit, "--count=1", "refs/remotes", "refs/tags")
    except FileNotFoundError:
        return {"problem": "git is not installed on this host, so its commit is not known"}
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return {"problem": f"git cannot read it: {' '.join(said.split())[:300]}"}
    notes = []
    if changed:
        files = ", ".join(line[3:] for line in changed[:5]) + (" and others" if len(changed) > 5 else "")
        notes.append(f"changed here, and the changes are not taken over: {files}")
    if not pushed:
        notes.append("its commit is in no branch that was fetched from the remote: it may be nowhere but here")
    if not repository:
        return {"problem": "its git repository has no remote", "commit": commit}
    return {"repository": repository, "commit": commit, "notes": notes}


def _git(folder: Path, *arguments: str) -> str:
    """Ask git with the rights of the repository's owner, whose settings may name programs."""
    found = [path.lstat() for path in (folder / ".git/config", folder / ".git", folder) if path.exists()]
    owner = next(((one.st_uid, one.st_gid) for one in found if one.st_uid), (0, 0))
    rights: dict[str, Any] = {}
    if os.geteuid() == 0 and owner[0]:
        rights = {"user": owner[0], "group": owner[1], "extra_groups": []}
    still = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*"]
    # pylint: disable-next=ansible-bad-function
    done = subprocess.run(
        ["git", *still, "-C", str(folder), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=_GIT_SECONDS,
        stdin=subprocess.DEVNULL,
        env={"PATH": os.defpath + ":/usr/local/bin", "LC_ALL": "C", "HOME": "/", "GIT_OPTIONAL_LOCKS": "0"},
        **rights,
    )
    if done.returncode not in {0, 1} or (done.returncode and arguments[0] != "config"):
        raise subprocess.CalledProcessError(done.returncode, "git", done.stdout, done.stderr)
    return str(done.stdout).rstrip()


# -- models


def _models(folder: Path, known: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    sizes: dict[int, dict[str, str]] = {}
    for id_, entry in known.items():
        if entry.get("bytes") and entry.get("sha256"):
            sizes.setdefault(entry["bytes"], {})[entry["sha256"]] = id_
    for path, found in below(folder):
        if not path.name.lower().endswith(MODEL):
            continue
        id_ = ""
        if found.size in sizes:
            with contextlib.suppress(OSError), opened_regular(found.path) as handle:
                id_ = sizes[found.size].get(sha256(Path(f"/proc/self/fd/{handle}")), "")
        yield {"path": readable(path.relative_to(folder)), "bytes": found.size, "id": id_}


# -- options


def _arguments(program: Path) -> list[str]:
    """Return the arguments of a ComfyUI that runs from this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
            scripts = [word for word in words if word.endswith("main.py")]
            if scripts and _real(process / "cwd" / scripts[0]) == program:
                return words[words.index(scripts[0]) + 1 :]
    return []
