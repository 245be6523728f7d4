"""What a request may say. It is checked as a whole before anything is loaded or fetched."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .failure import JobError

Value = Any


@dataclass(frozen=True)
class Field:
    """One field: its type, and for numbers its range and ``step``, counted from ``low``."""

    kind: type
    low: float = 0
    high: float = 0
    step: int = 1
    must: str = ""

    def allowed(self) -> str:
        """Say what is allowed."""
        if self.kind is str:
            return self.must or f"a text of at most {self.high:g} characters"
        number = "a whole number" if self.kind is int else "a number"
        return f"{number} from {self.low} to {self.high}{', ' + self.must if self.must else ''}"

    def fits(self, value: Value) -> bool:
        """Say whether a value is allowed."""
        if self.kind is str:
            return isinstance(value, str) and len(value) <= self.high and _is_unicode(value)
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            return False
        if not self.low <= value <= self.high or (isinstance(value, float) and not math.isfinite(value)):
            return False
        return self.kind is float or (int(value) - int(self.low)) % self.step == 0


IMAGES = ("image", "end_image")
MOST_SEED = 2**64 - 1
FIELDS: dict[str, Field] = {
    **dict.fromkeys(
        IMAGES, Field(str, high=10**9, must="an http(s) address, a data: URI or base64 of a PNG, JPEG or WebP")
    ),
    "positive_prompt": Field(str, high=10_000),
    "positive_prompt_2": Field(str, high=10_000),
    "negative_prompt": Field(str, high=10_000),
    "width": Field(int, 64, 2048, 16, "a multiple of 16"),
    "height": Field(int, 64, 2048, 16, "a multiple of 16"),
    "num_frames": Field(int, 1, 1001, 4, "4n+1, such as 81"),
    "steps": Field(int, 1, 100),
    "cfg_scale": Field(float, 0, 30),
    "shift": Field(float, 0, 100),
    "seed": Field(int, 0, MOST_SEED, 1, "or null for a random one"),
    "lora_strength": Field(float, -5, 5),
    "frame_rate": Field(int, 1, 120),
    "interpolation_multiplier": Field(int, 1, 10),
    "final_frame_rate": Field(int, 1, 240),
}
OLD_NAMES = {"cfg_img": "shift"}
"""The RunPod image called the sampler's shift so."""


class RequestError(JobError):
    """A request that is refused, with each problem's field, value and what is allowed."""

    def __init__(self, problems: list[dict[str, str]]) -> None:
        said = "; ".join(f"{p['field']}: found {p['value']}, allowed is {p['allowed']}" for p in problems)
        super().__init__("request", said, problems=problems)


def check(given: object, fields: Collection[str]) -> dict[str, Value]:
    """Return the values of a request to a workflow that has these ``fields``; raise RequestError with all problems."""
    if not isinstance(given, Mapping):
        raise RequestError([_problem("input", given, "an object with the fields of the request")])
    problems = []
    values: dict[str, Value] = {name: "" for name in fields if name.startswith("positive_prompt")}
    known = [name for name in FIELDS if name in fields]
    for old, value in given.items():
        name = OLD_NAMES.get(old, old)
        if name not in known:
            problems.append(_problem(old, value, f"only: {', '.join([*known, 'workflow'])}"))
        elif name != old and name in given:
            problems.append(_problem(old, value, f"not both {old} and {name}, which are the same"))
        elif name == "seed" and value is None:
            continue
        elif not FIELDS[name].fits(value):
            problems.append(_problem(old, value, FIELDS[name].allowed()))
        else:
            values[name] = value
    missing = [name for name in IMAGES if name in fields and name not in given]
    problems += [_problem(name, None, FIELDS[name].allowed()) for name in missing]
    if problems:
        raise RequestError(problems)
    if "seed" in known and "seed" not in values:
        values["seed"] = secrets.randbelow(2**53)  # so that no JavaScript rounds it
    return values


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem(field: object, value: Value, allowed: str) -> dict[str, str]:
    name = str(field).encode(errors="replace").decode()[:80]
    return {"field": name, "value": shown(value), "allowed": allowed}


def shown(value: Value) -> str:
    """A value in an error: short, and an address without what may be secret in it."""
    if value is None:
        return "nothing"
    if isinstance(value, str) and "://" in value[:10]:
        value = value.partition("?")[0].rpartition("@")[2]
    text = ascii(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}…"
