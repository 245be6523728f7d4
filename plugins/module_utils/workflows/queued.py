"""What the browser fills in as it queues a workflow: texts that it draws by lot, and dates and values in names."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
_DATE_PART = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
_NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
_SAVING = {
    *("CLIPSave", "LoraSave", "ModelSave", "Save3DAdvanced", "SaveAnimatedPNG", "SaveAnimatedWEBP", "SaveAudio"),
    *("SaveAudioAdvanced", "SaveAudioMP3", "SaveAudioOpus", "SaveGLB", "SaveGaussianSplat", "SaveImage"),
    *("SaveImageAdvanced", "SaveLatent", "SavePointCloud", "SaveSVGNode", "SaveVideo", "SaveWEBM", "VAESave"),
}
_SAVING_OF_PACKS = {
    *("DecodeAndSaveVideo", "LoraExtractKJ", "ModelSaveKJ", "SaveImageKJ", "SaveImageWithAlpha", "SaveStringKJ"),
    "VHS_VideoCombine",
}


def is_name(kind: str, widget: str) -> bool:
    """Whether a widget holds the name of what is saved, in which the browser replaces parts."""
    return widget == "filename_prefix" and kind in _SAVING | _SAVING_OF_PACKS


def called(node: Mapping[str, Any], title: str) -> tuple[str, str]:
    """The two names by which others mean a node; ``title`` is that of its type."""
    own = (node.get("properties") or {}).get("Node name for S&R")
    return str(own or ("" if node["type"] in _SAVING else node["type"])), str(node.get("title") or title)


def drawn(text: str, draw: Callable[[list[str]], str] = random.choice) -> str:
    """Return a text without comments, and with one of what stands between braces: ``{one|other}``."""
    text = _COMMENT.sub("", text)
    made, at = "", 0
    while at < len(text):
        sign = text[at]
        at += 1
        if sign == "\\":
            made += text[at - 1 : at + 1]
            at += 1
        elif sign == "{":
            parts, at = _parts(text, at)
            made += drawn(draw(parts), draw)
        else:
            made += sign
    return re.sub(r"\\([{}|])", r"\1", made)


def _parts(text: str, at: int) -> tuple[list[str], int]:
    """What may be drawn from the brace that has been opened before ``at``, and where it ends."""
    parts, depth = [""], 0
    while at < len(text):
        sign = text[at]
        at += 1
        if sign == "\\":
            parts[-1] += text[at - 1 : at + 1]
            at += 1
        elif sign == "|" and not depth:
            parts.append("")
        elif sign == "}" and not depth:
            break
        else:
            depth += (sign == "{") - (sign == "}")
            parts[-1] += sign
    return parts, at


def filled(name: str, value_of: Callable[[str, str], Any], now: datetime) -> str:
    """Return a name with the dates and the values that it asks for: ``%date:yyyy-MM-dd%``, ``%KSampler.seed%``.

    ``value_of`` a node and a widget raises LookupError where there is none, and that part stays as it is.
    """

    def one(found: re.Match[str]) -> str:
        first, *more = found[1].split(".")
        if len(more) == 1:
            try:
                return _NOT_IN_NAMES.sub("_", _text(value_of(first, more[0])))
            except LookupError:
                return found[0]
        return _DATE_PART.sub(lambda part: _date(part[0], now), first[5:]) if first.startswith("date:") else found[0]

    return re.sub("%([^%]+)%", one, name)


def _date(part: str, now: datetime) -> str:
    if part[0] == "y":
        return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(part, part)
    number = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}[part[0]]
    return f"{number:0{len(part)}}"


def _text(value: Any) -> str:
    """A value as JavaScript writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and 1e-6 <= abs(value) < 1e21:
        return f"{Decimal(repr(value)):f}".removesuffix(".0")
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return "[object Object]" if isinstance(value, dict) else f"{value}".removesuffix(".0")
