"""What a file holds. Sizes and hashes say nothing of a page, a pointer or a broken model under a model's name; and of
LoRAs that arrive as zip files what can be loaded safely is taken, and the rest is named."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import Problem
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import check_name
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.urls import without_queries

SAFE = ".safetensors"
_HEAD = 1024
# As the library that loads such files has it.
_LONGEST_HEADER = 100_000_000
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<?xml", b"<error", b"<!--")
_TEXTS = (".html", ".htm", ".xml", ".svg", ".md", ".txt", ".yaml", ".yml")
_CHUNK = 4 * 1024 * 1024
_ENCRYPTED = 0x1


def check(path: Path, name: str, *, hashed: bool) -> None:
    """Raise a problem where a file is plainly not what its name says; its form counts where no hash vouches for it."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    suffix = Path(name).suffix.lower()
    why = ""
    if not head:
        why = "an empty file"
    elif head.startswith(_POINTERS):
        why = "a pointer of Git LFS; the file itself has another address, at Hugging Face with /resolve/"
    elif text.lower().startswith(_PAGES) and suffix not in _TEXTS:
        why = "a page: a login, a captive portal or an error"
    elif text.startswith((b"{", b"[")) and suffix != ".json" and suffix not in _TEXTS and _is_json(path, size):
        why = f"a message: {_printable(text[:200].decode(errors='replace'))}"
    elif hashed:
        return
    elif suffix == SAFE:
        why = _not_safetensors(path, size)
    elif suffix == ".gguf" and not head.startswith(b"GGUF"):
        why = "no GGUF file"
    if why:
        raise Problem("content", f"what came as {name} is {why}")


def _printable(text: str) -> str:
    return without_queries("".join(c if c.isprintable() else " " for c in text).strip())


def _is_json(path: Path, size: int) -> bool:
    try:
        return size < _HEAD * _HEAD and json.loads(path.read_bytes()) is not None
    except (ValueError, RecursionError):
        return False


def _not_safetensors(path: Path, size: int) -> str:
    """Compare the header with the size: eight bytes with its length, where each tensor lies, and the tensors."""
    wrong = "no safetensors file"
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            return f"{wrong}, or only a part of one: {size} bytes cannot hold its header"
        try:
            header = json.loads(stream.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            end = max([0, *ends]) + 8 + length
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return f"{wrong}: its header cannot be read"
    return "" if end == size else f"{wrong} that is complete: its header speaks of {end} bytes, and it has {size}"


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
        if name.endswith(SAFE) and check_name(name) and name not in found.take:
            if member.flag_bits & _ENCRYPTED:
                raise Problem("content", f"{member.filename} in the zip file is encrypted; fetch it in another form")
            found.take[name] = member.filename
            found.bytes += member.file_size
        else:
            found.leave.append(member.filename)
    if not found.take:
        raise Problem("content", f"the zip file holds no {SAFE} file, only {', '.join(found.leave) or 'nothing'}")
    return found


def unpack(path: Path, folder: Path, found: Contents, *, hashed: bool) -> list[Path]:
    """Write the members that are taken, all of them complete before one gets its name; return the files."""
    drafts = {name: folder / f".{name}.unpacked.part" for name in found.take}
    try:
        with zipfile.ZipFile(path) as opened:
            for name, member in found.take.items():
                _write(opened, member, drafts[name])
                check(drafts[name], name, hashed=hashed)
        return [draft.replace(folder / name) for name, draft in drafts.items()]
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _write(opened: zipfile.ZipFile, member: str, draft: Path) -> None:
    with draft.open("wb") as out:
        draft.chmod(0o644)
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
