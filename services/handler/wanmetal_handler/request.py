"""What a request may say. It is checked as a whole before anything is loaded or fetched."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .failure import JobError


@dataclass(frozen=True)
class Field:
    """One field: its type, and for numbers their range and ``step``, counted from ``low``."""

    kind: type
    low: int = 0
    high: int = 0
    step: int = 1
    must: str = ""

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.kind is str:
            return self.must or f"a text of at most {self.high} characters"
        number = "a whole number" if self.kind is int else "a number"
        return f"{number} from {self.low} to {self.high}{', ' + self.must if self.must else ''}"

    def fits(self, value: Any) -> bool:
        """Say whether a value is allowed."""
        if self.kind is str:  # lone surrogates are no text that could be sent on
            return (
                isinstance(value, str) and len(value) <= self.high and value.encode(errors="ignore").decode() == value
            )
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            return False
        # The comparison is false for what is not a number.
        return self.low <= value <= self.high and (self.kind is float or (value - self.low) % self.step == 0)


IMAGES = ("image", "end_image")
_IMAGE = Field(str, high=10**9, must="an http(s) address, a data: URI or base64 of a PNG, JPEG or WebP")
_TEXT = Field(str, high=10_000)
_SIZE = Field(int, 64, 2048, 16, "a multiple of 16")
FIELDS: dict[str, Field] = {
    **dict.fromkeys(IMAGES, _IMAGE),
    **dict.fromkeys(("positive_prompt", "positive_prompt_2", "negative_prompt"), _TEXT),
    **dict.fromkeys(("width", "height"), _SIZE),
    "num_frames": Field(int, 1, 1001, 4, "4n+1, such as 81"),
    "steps": Field(int, 1, 100),
    "cfg_scale": Field(float, 0, 30),
    "shift": Field(float, 0, 100),
    "seed": Field(int, 0, 2**64 - 1, 1, "or null for a random one"),
    "lora_strength": Field(float, -5, 5),
    "frame_rate": Field(int, 1, 120),
    "interpolation_multiplier": Field(int, 1, 10),
    "final_frame_rate": Field(int, 1, 240),
}
OLD_NAMES = {"cfg_img": "shift"}
"""The RunPod image called the sampler's shift so."""


class RequestError(JobError):
    """A request that is refused, with each problem's field, value and what is allowed."""

    def __init__(self, *found: tuple[Any, Any, str]) -> None:
        problems = [
            {"field": str(field).encode(errors="replace").decode()[:80], "value": shown(value), "allowed": allowed}
            for field, value, allowed in found
        ]
        said = "; ".join(f"{p['field']}: found {p['value']}, allowed is {p['allowed']}" for p in problems)
        super().__init__("request", said, problems=problems)


def check(given: object, fields: Collection[str]) -> dict[str, Any]:
    """Return the values of a request to a workflow that has these ``fields``; raise RequestError with all problems."""
    if not isinstance(given, Mapping):
        raise RequestError(("input", given, "an object with the fields of the request"))
    known = [name for name in FIELDS if name in fields]
    values: dict[str, Any] = {name: "" for name in known if name.startswith("positive_prompt")}
    found = []
    for said, value in given.items():
        name = OLD_NAMES.get(said, said)
        if name not in known:
            found.append((said, value, f"only: {', '.join([*known, 'workflow'])}"))
        elif name != said and name in given:
            found.append((said, value, f"not both {said} and {name}, which are the same"))
        elif FIELDS[name].fits(value):
            values[name] = value
        elif name != "seed" or value is not None:
            found.append((said, value, FIELDS[name].allowed))
    found += [(name, None, FIELDS[name].allowed) for name in IMAGES if name in fields and name not in given]
    if found:
        raise RequestError(*found)
    if "seed" in known:
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
