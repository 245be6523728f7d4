"""What a request may give to a workflow. It is checked as a whole before anything is loaded or fetched."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .failure import JobError

MEDIA = {
    "image": "a PNG, JPEG or WebP",
    "mask": "a PNG, JPEG or WebP whose white part is the mask",
    "video": "an MP4, MOV, WebM, MKV or GIF",
    "audio": "a WAV, MP3, FLAC, OGG or M4A",
}
_LOADERS = {
    ("LoadImage", "image"): "image",
    ("LoadImageMask", "image"): "mask",
    ("LoadVideo", "file"): "video",
    ("VHS_LoadVideo", "video"): "video",
    ("LoadAudio", "audio"): "audio",
    ("VHS_LoadAudioUpload", "audio"): "audio",
}
_NUMBERS = {"integer": int, "number": int | float, "boolean": bool}


@dataclass(frozen=True)
class Input:
    """One input: its kind, and for numbers their range and ``step``, counted from ``low``."""

    kind: str
    low: int = 0
    high: int = 0
    step: int = 1
    must: str = ""

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.kind in MEDIA:
            return f"an http(s) address, a data: URI or base64 of {MEDIA[self.kind]}"
        if self.kind == "text":
            return f"a text of at most {self.high} characters"
        if self.kind == "boolean":
            return "true or false"
        number = "a whole number" if self.kind == "integer" else "a number"
        return f"{number} from {self.low} to {self.high}{', ' + self.must if self.must else ''}"

    def fits(self, value: Any) -> bool:
        """Say whether a value is allowed."""
        if self.kind not in _NUMBERS:  # lone surrogates are no text that could be sent on
            most = 10**9 if self.kind in MEDIA else self.high
            return isinstance(value, str) and len(value) <= most and value.encode(errors="ignore").decode() == value
        if not isinstance(value, _NUMBERS[self.kind]) or isinstance(value, bool) != (self.kind == "boolean"):
            return False
        if self.kind == "boolean":
            return True
        # The comparison is false for what is not a number.
        return self.low <= value <= self.high and (self.kind == "number" or (value - self.low) % self.step == 0)

    def schema(self, default: Any) -> dict[str, Any]:
        """The same as JSON schema."""
        found: dict[str, Any] = {"description": self.allowed, "type": self.kind}
        if self.kind in MEDIA or self.kind == "text":
            found |= {"type": "string"} | ({"maxLength": self.high} if self.high else {"x-kind": self.kind})
        elif self.kind != "boolean":
            found |= {"minimum": self.low, "maximum": self.high}
        if self.step > 1 and self.low % self.step == 0:
            found["multipleOf"] = self.step
        if default is not None and self.kind not in MEDIA:
            found["default"] = default
        return found


_TEXT = Input("text", high=10_000)
_SIZE = Input("integer", 64, 2048, 16, "a multiple of 16")
KNOWN: dict[str, Input] = {
    **dict.fromkeys(("width", "height"), _SIZE),
    "num_frames": Input("integer", 1, 1001, 4, "4n+1, such as 81"),
    "num_masks": Input("integer", 1, 1001, 4, "4n+1, the same as num_frames"),
    "steps": Input("integer", 1, 100),
    "cfg_scale": Input("number", 0, 30),
    "shift": Input("number", 0, 100),
    "seed": Input("integer", 0, 2**64 - 1, 1, "or null for a random one"),
    "frame_rate": Input("integer", 1, 120),
    "interpolation_multiplier": Input("integer", 1, 10),
    "final_frame_rate": Input("integer", 1, 240),
    **{name: Input("number", -5, 5) for name in ("lora_strength", *(f"lora_{n}_strength" for n in range(1, 5)))},
}
OLD_NAMES = {"cfg_img": "shift"}
"""The RunPod image called the sampler's shift so."""


def derived(name: str, node_type: str, key: str, value: Any) -> Input:
    """What may be given for an input of a node, by its name or else by what the graph has there."""
    if kind := _LOADERS.get((node_type, key)):
        return Input(kind)
    if name in KNOWN:
        return KNOWN[name]
    if isinstance(value, bool):
        return Input("boolean")
    if isinstance(value, int | float):
        return Input("integer" if isinstance(value, int) else "number", -(2**63), 2**64 - 1)
    return _TEXT


class RequestError(JobError):
    """A request that is refused, with each problem's field, value and what is allowed."""

    def __init__(self, *found: tuple[Any, Any, str]) -> None:
        problems = [
            {"field": str(field).encode(errors="replace").decode()[:80], "value": shown(value), "allowed": allowed}
            for field, value, allowed in found
        ]
        said = "; ".join(f"{p['field']}: found {p['value']}, allowed is {p['allowed']}" for p in problems)
        super().__init__("request", said, problems=problems)


def whole(value: Any) -> Any:
    """A whole number that is written with a point, as JSON may have it, without the point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check(given: object, inputs: Mapping[str, Input]) -> dict[str, Any]:
    """Return the values of a request to a workflow with these ``inputs``; raise RequestError with all problems."""
    if not isinstance(given, Mapping):
        raise RequestError(("input", given, "an object with the fields of the request"))
    values: dict[str, Any] = {name: "" for name in inputs if name.startswith("positive_prompt")}
    found = []
    for said, value in given.items():
        name = str(OLD_NAMES.get(said, said))
        if name in inputs and inputs[name].kind == "integer":
            value = whole(value)
        if name not in inputs:
            found.append((said, value, f"only: {', '.join([*inputs, 'workflow'])}"))
        elif name != said and name in given:
            found.append((said, value, f"not both {said} and {name}, which are the same"))
        elif inputs[name].fits(value):
            values[name] = value
        elif name != "seed" or value is not None:
            found.append((said, value, inputs[name].allowed))
    found += [(n, None, one.allowed) for n, one in inputs.items() if one.kind in MEDIA and n not in given]
    if found:
        raise RequestError(*found)
    if "seed" in inputs:
        values.setdefault("seed", secrets.randbelow(2**53))  # so that no JavaScript rounds it
    return values


def shown(value: Any) -> str:
    """A value in an error: short, and an address without what may be secret in it."""
    if value is None:
        return "nothing"
    if isinstance(value, str) and "://" in value[:10]:
        value = value.partition("?")[0].rpartition("@")[2]
    text = ascii(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}…"
