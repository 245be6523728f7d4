"""Files that people have of workflows: alone, inside a request or an answer, or in a picture's metadata."""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import is_api_format

_PNG = b"\x89PNG\r\n\x1a\n"
_BEGINS = re.compile(r'\{\s*"[^"\x00-\x1f]{1,100}"\s*:')
_DEPTH = 6
_LISTED, _TRIES = 100, 1000
"""So many entries of a list are looked at, and so many places where a workflow may begin and does not."""
_LARGEST = 50_000_000
"""A picture may claim that a text unpacks to any size."""


_WHOLE, _ENDS = 64_000_000, 24_000_000
"""Files that are larger are videos, of which the beginning and the end are read: their metadata lies there."""


_GIVE = "Give what ComfyUI has saved or exported (API), or a picture or a video that it has made"


class NoWorkflowError(ValueError):
    """A file without a workflow."""


def load(file: Path) -> bytes:
    """Return what of a file may hold a workflow."""
    if not file.is_file():
        raise NoWorkflowError("this is no file")
    with file.open("rb") as opened:
        size = file.stat().st_size
        if size <= _WHOLE:
            return opened.read(_WHOLE)
        begin = opened.read(_ENDS)
        opened.seek(size - _ENDS)
        return begin + b"\0\0" + opened.read(_ENDS)


def read(data: bytes) -> tuple[dict[str, Any], str]:
    """Return the workflow of a file, and where in it that lies: empty where it is the file itself."""
    if data.startswith(_PNG):
        return _first(_png_texts(data), "a picture's metadata")
    # Windows' PowerShell writes UTF-16.
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if wide else "utf-8-sig", "replace")
    if text.lstrip()[:1] in ("{", "["):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NoWorkflowError(f"this is no JSON: {error}") from error
        if (found := find(whole)) is None:
            raise NoWorkflowError(f"this is no workflow: it has neither nodes nor class types. {_GIVE}")
        return found
    if "\0" not in text and not _BEGINS.search(text):
        raise NoWorkflowError(f"this is neither JSON nor a picture or a video of ComfyUI's. {_GIVE}")
    return _first([text], "the file's metadata")


def find(whole: Any, depth: int = _DEPTH) -> tuple[dict[str, Any], str] | None:
    """Return the workflow that data holds, and the keys that lead to it, the browser's format first."""
    if isinstance(whole, str) and whole.lstrip().startswith("{"):
        try:
            whole = json.loads(whole)
        except (ValueError, RecursionError):
            return None
    if isinstance(whole, list) and len(whole) == 1:
        whole = whole[0]
    if isinstance(whole, list):  # ComfyUI's queue and history are lists
        whole = {f"[{index}]": one for index, one in enumerate(whole[:_LISTED])}
    if not isinstance(whole, Mapping):
        return None
    if isinstance(whole.get("nodes"), list) or is_api_format(whole):
        return dict(whole), ""
    if depth == 0:
        return None
    found = {key: one for key, value in whole.items() if (one := find(value, depth - 1)) is not None}
    for key, (graph, path) in sorted(found.items(), key=lambda item: "nodes" not in item[1][0]):
        return graph, f"{key}.{path}" if path else key
    return None


def _first(texts: Iterator[str] | list[str], where: str) -> tuple[dict[str, Any], str]:
    """The first workflow that begins anywhere in some texts, those of the browser's format first."""
    decoder, graphs, left = json.JSONDecoder(), [], _TRIES
    for text in texts:
        begin = 0
        while match := _BEGINS.search(text, begin):
            try:
                whole, begin = decoder.raw_decode(text, match.start())
            except (ValueError, RecursionError):
                begin, left = match.start() + 1, left - 1
                if left:
                    continue
                break
            if found := find(whole):
                graphs.append(found[0])
    if not graphs:
        raise NoWorkflowError(f"there is no workflow in {where}: a program may have removed it when it saved the file")
    return min(graphs, key=lambda graph: "nodes" not in graph), where


def _png_texts(data: bytes) -> Iterator[str]:
    """The texts of a PNG file: plain, packed, and those in UTF-8, which may be either."""
    at = len(_PNG)
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        at += size + 12
        _unused, _unused, rest = body.partition(b"\0")
        if kind == b"tEXt":
            yield rest.decode("latin-1")
        elif kind == b"zTXt":
            yield _unpacked(rest[1:])
        elif kind == b"iTXt":
            packed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
            yield _unpacked(text) if packed else text.decode("utf-8", "replace")


def _unpacked(data: bytes) -> str:
    try:
        return zlib.decompressobj().decompress(data, _LARGEST).decode("utf-8", "replace")
    except zlib.error:
        return ""
