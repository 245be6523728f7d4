"""What a file holds: sizes and hashes say nothing of a page, a pointer or a broken model under a model's name."""

from __future__ import annotations

import json
from pathlib import Path

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.problems import Problem
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.urls import without_queries

SAFE = ".safetensors"
_HEAD = 1024
# As the library that loads such files has it.
_LONGEST_HEADER = 100_000_000
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<?xml", b"<error", b"<!--")
_TEXTS = (".html", ".htm", ".xml", ".svg", ".md", ".txt", ".yaml", ".yml")


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
