"""LoRAs that arrive as zip files: look inside, take what can be loaded safely, and say what was there."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import content
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.files import check_name
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.problems import Problem

_CHUNK = 4 * 1024 * 1024
_ENCRYPTED = 0x1


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
    except Exception as error:  # zipfile raises what it likes for a file that is none
        raise Problem("content", f"it is called zip and is none ({error})") from error
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/")).name
        if name.endswith(content.SAFE) and check_name(name) and name not in found.take:
            if member.flag_bits & _ENCRYPTED:
                raise Problem("content", f"{member.filename} in the zip file is encrypted; fetch it in another form")
            found.take[name] = member.filename
            found.bytes += member.file_size
        else:
            found.leave.append(member.filename)
    if not found.take:
        raise Problem(
            "content", f"the zip file holds no {content.SAFE} file, only {', '.join(found.leave) or 'nothing'}"
        )
    return found


def unpack(path: Path, folder: Path, found: Contents, *, hashed: bool) -> list[Path]:
    """Write the members that are taken, all of them complete before one gets its name; return the files."""
    drafts = {name: folder / f".{name}.unpacked.part" for name in found.take}
    try:
        with zipfile.ZipFile(path) as opened:
            for name, member in found.take.items():
                _write(opened, member, drafts[name])
                content.check(drafts[name], name, hashed=hashed)
        return [draft.replace(folder / name) for name, draft in drafts.items()]
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _write(opened: zipfile.ZipFile, member: str, draft: Path) -> None:
    with draft.open("wb") as out:
        try:
            with opened.open(member) as source:
                while data := source.read(_CHUNK):
                    out.write(data)
        except Exception as error:  # each kind of compression has errors of its own, of no common class
            if isinstance(error, OSError) and error.errno:
                raise
            raise Problem("content", f"{member} in the zip file cannot be unpacked, it is damaged ({error})") from error
        out.flush()
        os.fsync(out.fileno())
