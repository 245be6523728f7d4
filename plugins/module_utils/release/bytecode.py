"""Bytecode of code that nobody here has read: compiled by a process without rights, put into place by root.

Root imports nothing of that code and writes no name that it chose. The process gets a list of sources, and answers with
the bytecode of each in turn; a source that cannot be compiled has none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import opened_folder

PROGRAM = r"""
import importlib.util, json, marshal, os, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def compiled(pair):
    path, name = pair
    try:
        with open(path, "rb") as stream:
            found = os.fstat(stream.fileno())
            code = marshal.dumps(compile(stream.read(), name, "exec", dont_inherit=True))
    except Exception:
        return b""
    stamp = [int(value) & 0xFFFFFFFF for value in (0, found.st_mtime, found.st_size)]
    return importlib.util.MAGIC_NUMBER + b"".join(value.to_bytes(4, "little") for value in stamp) + code

if __name__ == "__main__":
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        for data in pool.map(compiled, json.load(sys.stdin), chunksize=20):
            sys.stdout.buffer.write(len(data).to_bytes(8, "little") + data)
    sys.stdout.flush()
"""

_MOST_BYTES = 64 * 2**20
_SANDBOX = (
    *("DynamicUser=yes", "PrivateNetwork=yes", "PrivateDevices=yes", "ProtectHome=read-only", "ProtectProc=invisible"),
    *("CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectKernelTunables=yes", "ProtectControlGroups=yes"),
    *(
        "RestrictAddressFamilies=AF_UNIX",
        "RestrictNamespaces=yes",
        "RestrictSUIDSGID=yes",
        "SystemCallArchitectures=native",
    ),
    *("MemoryMax=8G", "TasksMax=512", "RuntimeMaxSec=1800"),
)


def sandboxed(command: Sequence[str]) -> list[str]:
    """The command in a unit with a user of its own, which can write nowhere."""
    properties = (f"--property={entry}" for entry in _SANDBOX)
    return ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec", *properties, *command]


def sources(folder: Path, leave_out: str = "") -> list[Path]:
    """The Python files below a folder, links left alone, without those whose path matches ``leave_out``."""
    pattern = re.compile(leave_out) if leave_out else None
    found = []
    for root, folders, files in os.walk(folder):
        folders.sort()
        here = Path(root)
        for name in sorted(files):
            path = here / name
            if name.endswith(".py") and not path.is_symlink() and not (pattern and pattern.search(str(path))):
                found.append(path)
    return found


def compile_folder(
    folder: Path,
    python: Path,
    version: str,
    *,
    final: Path | None = None,
    leave_out: str = "",
    sandbox: Callable[[Sequence[str]], list[str]] = sandboxed,
    locks: Collection[int] = (),
) -> str:
    """Compile what is below a folder. It is going to be at ``final``, and tracebacks name it there.

    Returns why some of it may have no bytecode, which costs time at a start and nothing else, or an empty text.
    """
    paths = sources(folder, leave_out)
    if not paths:
        return ""
    pairs = [(str(path), str((final or folder) / path.relative_to(folder))) for path in paths]
    count, unfit = 0, list[Path]()
    with tempfile.TemporaryFile() as errors:
        # pylint: disable-next=ansible-bad-function
        process = subprocess.Popen(
            # Without "site", which would run what packages have put there.
            sandbox([str(python), "-I", "-S", "-W", "ignore", "-c", PROGRAM]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=locks,
        )
        to, back = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        with contextlib.suppress(BrokenPipeError), to:
            to.write(json.dumps(pairs).encode())
        with back:
            for path, data in zip(paths, _answers(back)):  # noqa: B905 (it may end early)
                count += 1
                if data and not _place(path, f"{path.stem}.cpython-{version.replace('.', '')}.pyc", data):
                    unfit.append(path)
        process.wait()
        errors.seek(0)
        said = errors.read(2000).decode(errors="replace").strip()
    if count < len(paths):
        return f"only {count} of {len(paths)} files below {folder} were compiled: {said}"
    return f"there is no place for bytecode beside {unfit[0]}, and {len(unfit)} such files have none" if unfit else ""


def _answers(stream: IO[bytes]) -> Iterator[bytes]:
    while len(head := stream.read(8)) == 8:
        size = int.from_bytes(head, "little")
        if size > _MOST_BYTES or len(data := stream.read(size)) != size:
            return
        yield data


def _place(source: Path, name: str, data: bytes) -> bool:
    """Write bytecode beside its source, unless something else has its name there."""
    with opened_folder(source.parent) as folder:
        with contextlib.suppress(FileExistsError):
            os.mkdir("__pycache__", 0o755, dir_fd=folder)
        try:
            cache = os.open("__pycache__", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except NotADirectoryError:  # also for a link
            return False
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=cache)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o644, dir_fd=cache), "wb") as stream:
            stream.write(data)
    except IsADirectoryError:
        return False
    finally:
        os.close(cache)
    return True
