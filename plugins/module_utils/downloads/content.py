"""What a file holds.

Sizes and hashes say nothing of a page, a pointer or a broken model under a model's name; and of LoRAs that arrive as
zip files what can be loaded safely is taken, and the rest is named.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import Problem
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import check_name
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.urls import without_queries
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import plain

SAFE = ".safetensors"
_HEAD = 1024
# As the library that loads such files has it.
_LONGEST_HEADER = 100_000_000
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_PAGE = re.compile(rb"<(?:!doctype|!--|\?xml|[a-z]{4,}[\s>])", re.IGNORECASE)
_TEXTS = (".html", ".htm", ".xml", ".svg", ".md", ".txt", ".yaml", ".yml")
_CHUNK = 4 * 1024 * 1024
_ENCRYPTED = 0x1
_MEMBERS_NAMED, _LONGEST_NAMED = 5, 80
_FORMS = {
    ".gguf": ((b"GGUF",), "GGUF"),
    **dict.fromkeys((".ckpt", ".pt", ".pth"), ((b"PK\x03\x04", b"\x80"), "PyTorch")),
}
"""How files begin, by the end of their names."""
_BITS = re.compile(r"[A-Z]+([0-9]{1,3})(?:_.*)?")


def check(path: Path, name: str, *, hashed: bool) -> None:
    """Raise a problem where a file is plainly not what its name says."""
    with path.open("rb") as stream:
        why = problem(stream, path.stat().st_size, name, hashed=hashed)
    if why:
        raise Problem("content", f"what came as {name} is {why}")


def problem(stream: BinaryIO, size: int, name: str, *, hashed: bool) -> str:
    """Say what a file is that is plainly not what its name says; its form counts where no hash vouches for it."""
    head = stream.read(_HEAD)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = head.decode("utf-16", "ignore").encode().lstrip()
    suffix = Path(name).suffix.lower()
    if not head:
        return "an empty file"
    if text.startswith(_POINTERS):
        return "a pointer of Git LFS; the file itself has another address, at Hugging Face with /resolve/"
    if _PAGE.match(text) and suffix not in _TEXTS:
        return "a page: a login, a captive portal or an error"
    if text.startswith((b"{", b"[")) and suffix != ".json" and suffix not in _TEXTS and _is_json(stream, size):
        return f"a message: {without_queries(plain(text[:200].decode(errors='replace')).strip())}"
    if not hashed and suffix in {SAFE, ".sft"}:
        return _not_safetensors(stream, size)
    if not hashed and suffix in _FORMS and not head.startswith(_FORMS[suffix][0]):
        return f"no {_FORMS[suffix][1]} file"
    return ""


def _is_json(stream: BinaryIO, size: int) -> bool:
    stream.seek(0)
    try:
        return size < _HEAD * _HEAD and json.loads(stream.read()) is not None
    except (ValueError, RecursionError):
        return False


def _not_safetensors(stream: BinaryIO, size: int) -> str:
    """Compare the header with the size: eight bytes with its length, where each tensor lies, and the tensors."""
    wrong = "no safetensors file"
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(_LONGEST_HEADER, size - 8):
        return f"{wrong}, or only a part of one: {size} bytes cannot hold its header"
    try:
        header = json.loads(stream.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        lies = sorted((*map(_whole, tensor["data_offsets"]), *_bytes_of(tensor)) for tensor in tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{wrong}: its header cannot be read"
    if not lies:
        return f"{wrong} with anything in it: its header names no tensor"
    end = 0
    for begin, until, *known in lies:
        if begin != end or until < begin or (known and [until - begin] != known):
            return f"{wrong}: what its header says of where tensors lie cannot be"
        end = until
    end += 8 + length
    return "" if end == size else f"{wrong} that is complete: its header speaks of {end} bytes, and it has {size}"


def _whole(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 63:
        raise ValueError(number)
    return number


def _bytes_of(tensor: Mapping[str, Any]) -> list[int]:
    """The bytes of a tensor by its shape and its type, such as F32, BF16 or F8_E4M3; of other types nothing."""
    kind = "BOOL8" if tensor["dtype"] == "BOOL" else tensor["dtype"]
    bits = _BITS.fullmatch(kind)
    return [(math.prod(map(_whole, tensor["shape"])) * int(bits[1]) + 7) // 8] if bits else []


def names(members: Sequence[str]) -> str:
    """Some names of members, for a message."""
    more = f" and {len(members) - _MEMBERS_NAMED} more" if len(members) > _MEMBERS_NAMED else ""
    named = plain(", ".join(name[:_LONGEST_NAMED] for name in members[:_MEMBERS_NAMED]))
    return without_queries(named.strip()) + more


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
            # Of members with one name the last one counts, for those who open it, too.
            members = [member for member in opened.NameToInfo.values() if not member.is_dir()]
    except Exception as error:  # zipfile raises what it likes for a file that is none
        raise Problem("content", f"it is called zip and is none ({error})") from error
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/")).name
        if name.lower().endswith(SAFE) and check_name(name) and name not in found.take:
            if member.flag_bits & _ENCRYPTED:
                raise Problem("content", f"{member.filename} in the zip file is encrypted; fetch it in another form")
            found.take[name] = member.filename
            found.bytes += member.file_size
        else:
            found.leave.append(member.filename)
    if not found.take:
        raise Problem("content", f"the zip file holds no {SAFE} file, only {names(found.leave) or 'nothing'}")
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


def _unpacked(opened: zipfile.ZipFile, member: str) -> Iterator[bytes]:
    try:
        with opened.open(member) as source:
            while data := source.read(_CHUNK):
                yield data
    except Exception as error:  # each kind of compression has errors of its own, of no common class
        raise Problem("content", f"{member} in the zip file cannot be unpacked, it is damaged ({error})") from error


def _write(opened: zipfile.ZipFile, member: str, draft: Path) -> None:
    with draft.open("wb") as out:
        draft.chmod(0o644)
        for data in _unpacked(opened, member):
            out.write(data)
        out.flush()
        os.fsync(out.fileno())
