"""What a host does at its next boot where something has not come to its end by then, as where it lost power meanwhile.

The host has no program of this collection. So the sources of what runs here are packed into a file that Python can run,
and a unit of systemd that runs it is there for as long as it may be needed.
"""

from __future__ import annotations

import contextlib
import io
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import sync_folder, write_whole

_SOURCES = __name__.removesuffix(".host.boot")

_UNIT = """\
# It is here while {unit} is switched. Where that does not come to its end, the next boot rolls it back.
[Unit]
Description=Roll back the switch of {unit} that was cut off
ConditionPathExists={program}
RequiresMountsFor={program}
Before={before}

[Service]
Type=oneshot
ExecStart={python} -I {program}
"""


@dataclass(frozen=True)
class AtBoot:
    """A call of a function of ``module_utils`` at the next boot, for a service."""

    unit: str
    folder: Path
    units: Path

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """What starts it, its unit, and its program."""
        name = f"wanmetal-rollback-{self.unit.removesuffix('.service')}.service"  # of a timer, it is a service, too
        return self.units / "multi-user.target.wants" / name, self.units / name, self.folder / f"{self.unit}.zip"

    def is_set_up(self) -> bool:
        """Whether something is left of it, at least."""
        return any(path.exists() or path.is_symlink() for path in self.paths)

    def set_up(self, function: Callable[..., str], arguments: Iterable[str], before: Iterable[str]) -> None:
        """Have the function called, and what it returns in the journal, before these units start."""
        link, unit, program = self.paths
        self.folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(program, _packed(function, arguments), 0o600)
        # Sockets start before all services: one that waits for this would lead in a circle.
        services = " ".join(name for name in before if name.endswith(".service"))
        text = _UNIT.format(unit=self.unit, program=program, before=services, python=sys.executable)
        write_whole(unit, text)
        link.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(unit)
        sync_folder(link.parent)

    def remove(self) -> None:
        """Have nothing called."""
        for path in self.paths:
            path.unlink(missing_ok=True)


def _packed(function: Callable[..., str], arguments: Iterable[str]) -> bytes:
    files = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{_SOURCES}.") and module.__spec__:
            loader: Any = module.__spec__.loader  # of a file or of an archive: both tell the source
            path = name.replace(".", "/") + ("/__init__.py" if hasattr(module, "__path__") else ".py")
            files[path] = loader.get_source(name) or ""
    above = _SOURCES.split(".")
    for depth in range(len(above)):
        files["/".join([*above[: depth + 1], "__init__.py"])] = ""
    name = function.__name__
    files["__main__.py"] = f"from {function.__module__} import {name}\nprint({name}(*{list(arguments)!r}))\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(path), text)
    return packed.getvalue()
