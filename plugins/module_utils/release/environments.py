"""Python environments: built from a lock, once, and removed when nothing runs in them."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import BusyError, exclusive, write_whole
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import duration
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.bytecode import compile_folder

COMPLETE = "complete"
"""Written last by a build: an environment without it is incomplete."""

LOCK_WAIT_S = 3600.0

_HASHED = re.compile(r"(.+)-[0-9a-f]+")
_UNITS = Path("/etc/systemd/system")

# Hardly ever imported: tests, and the many models of transformers, each of which is loaded on demand.
_NOT_COMPILED = r"/tests?/|/transformers/models/"


class BuildError(Exception):
    """A build that failed, with what to do."""


@dataclass
class Builder:
    """Runs the programs of a build: again where the network may be the reason, and under its lock to their end."""

    uv: Path
    python: str
    retries: int = 3
    pause_s: float = 5.0
    wait_s: float = LOCK_WAIT_S
    compile: Callable[..., str] = compile_folder
    locks: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def holding(self, folder: Path) -> Iterator[None]:
        """Hold the lock of a folder in which things are built and removed."""
        try:
            with exclusive(folder / ".lock", self.wait_s) as handle:
                self.locks.append(handle)
                yield
        except BusyError as holder:
            raise BuildError(
                f"another deploy ({holder}) has been building in {folder} for more than {duration(self.wait_s)}. "
                "Wait until that one has ended, then run this again."
            ) from None
        finally:
            self.locks[:] = self.locks[:-1]

    def run(self, *command: str | Path) -> None:
        """Run a program, again where it fails and retries are left. Raises BuildError with its last output."""
        words = [str(word) for word in command]
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause_s * 2 ** (attempt - 1))
            try:
                # pylint: disable-next=ansible-bad-function
                done = subprocess.run(
                    words, stdin=subprocess.DEVNULL, capture_output=True, check=False, pass_fds=self.locks
                )
            except OSError as error:
                raise BuildError(f"{words[0]} cannot be run: {error.strerror}") from error
            if done.returncode == 0:
                return
        said = (done.stdout + done.stderr).decode(errors="replace").strip()[-4000:]
        raise BuildError(f"{' '.join(words[:3])} ended with status {done.returncode}: {said}")

    def environment(self, folder: Path, requirements: str) -> bool:
        """Build an environment from a lock, unless it is there. Says whether it did."""
        if (folder / COMPLETE).is_file():
            return False
        with self.holding(folder.parent):
            if (folder / COMPLETE).is_file():
                return False
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(mode=0o755)
            write_whole(folder / "requirements.txt", requirements)
            python = folder / "venv/bin/python"
            self.run(
                self.uv, "venv", "--clear", f"--python={self.python}", "--python-preference=system", folder / "venv"
            )
            # No package may be built here: that would run its code as root, with tools that no lock names.
            strict = ("--require-hashes", "--no-build", f"--python={python}")
            self.run(self.uv, "pip", "sync", *strict, folder / "requirements.txt")
            self.bytecode(folder / "venv/lib", python, leave_out=_NOT_COMPILED)
            self.sync(folder)
            write_whole(folder / COMPLETE, "")
            for name in unused(folder.parent, prefix_of(folder.name), without={folder.name}):
                remove(folder.parent / name)
        return True

    def bytecode(self, folder: Path, python: Path, *, final: Path | None = None, leave_out: str = "") -> None:
        """Compile, and note what that left undone."""
        if left := self.compile(folder, python, self.python, final=final, leave_out=leave_out, locks=self.locks):
            self.warnings.append(left)

    def sync(self, folder: Path) -> None:
        """Bring all that was built to disk, before a mark says that it is there."""
        self.run("sync", "--file-system", folder)


def prefix_of(name: str) -> str:
    """What the names of earlier builds of an environment begin with, or an empty text."""
    match = _HASHED.fullmatch(name)
    return match[1] if match else ""


def unused(
    environments: Path, prefix: str, *, releases_without: Collection[str] = (), without: Collection[str] = ()
) -> list[str]:
    """Environments of this kind that no unit names and no release links to, builds of releases under way included."""
    links = [
        path / "venv" for path in (environments.parent / "releases").glob("*") if path.name not in releases_without
    ]
    used = {link.readlink().parent.name for link in links if link.is_symlink()} | set(without)
    units = "".join(path.read_text(errors="replace") for path in _UNITS.glob("*.service") if path.is_file())
    return sorted(
        path.name
        for path in environments.glob(f"{prefix}-*")
        if prefix and prefix_of(path.name) == prefix and path.name not in used and f"{path}/" not in units
    )


def damaged(environment: Path) -> list[str]:
    """Files of packages that are not as their wheels brought them. Reads them all.

    Some wheels bring bytecode, which the build has replaced with its own.
    """
    wrong = []
    for recorded in environment.glob("venv/lib/python*/site-packages/*.dist-info/RECORD"):
        site = recorded.parents[1]
        try:
            rows = list(csv.reader(recorded.read_text(encoding="utf-8").splitlines()))
        except (OSError, ValueError, csv.Error):
            wrong.append(str(recorded.relative_to(site)))
            continue
        wrong += [
            row[0]
            for row in rows
            if len(row) == 3
            and row[1].startswith("sha256=")
            and not row[0].endswith(".pyc")
            and not _is(site / row[0], row[1])
        ]
    return sorted(wrong)


def _is(path: Path, expected: str) -> bool:
    try:
        found = hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return False
    return base64.urlsafe_b64encode(found).rstrip(b"=").decode() == expected.removeprefix("sha256=").rstrip("=")


def remove(environment: Path) -> None:
    """Remove an environment. One that is removed in part must not pass for a whole one."""
    (environment / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(environment)
