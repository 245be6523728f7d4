"""LoRAs that arrive as zip files: look inside, take what can be loaded safely, and say what was there."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.files import check_name
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.problems import Problem

SAFE = ".safetensors"
_CHUNK = 4 * 1024 * 1024


@dataclass
class Contents:
    """What a zip file holds."""

    take: dict[str, str] = field(default_factory=dict)
    """Names to write, with the member that each comes from."""
    leave: list[str] = field(default_factory=list)
    bytes: int = 0


def look(path: Path) -> Contents:
    """Sort the members: safetensors are taken, everything else is left and named."""
    found = Contents()
    try:
        with zipfile.ZipFile(path) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise Problem("wrong_hash", f"it is called zip and is none ({error})") from error
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/")).name
        if name.endswith(SAFE) and check_name(name) and name not in found.take:
            found.take[name] = member.filename
            found.bytes += member.file_size
        else:
            found.leave.append(member.filename)
    if not found.take:
        raise Problem("local", f"the zip file holds no {SAFE} file, only {', '.join(found.leave) or 'nothing'}")
    return found


def unpack(path: Path, folder: Path, found: Contents) -> list[Path]:
    """Write the members that are taken, each complete before it gets its name; return the files."""
    written: list[Path] = []
    with zipfile.ZipFile(path) as opened:
        for name, member in found.take.items():
            new = folder / f".{name}.unpacked.part"
            try:
                with opened.open(member) as source, new.open("wb") as out:
                    while data := source.read(_CHUNK):
                        out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
            except zipfile.BadZipFile as error:
                new.unlink(missing_ok=True)
                raise Problem("wrong_hash", f"{member} in the zip file is damaged ({error})") from error
            new.replace(folder / name)
            written.append(folder / name)
    return written
