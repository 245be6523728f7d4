"""Problems, as an operator is told of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_USERINFO = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")
_LONGEST = 120


@dataclass(frozen=True)
class Problem:
    """Something that keeps a deploy from starting."""

    kind: str
    what: str
    found: str
    needed: str
    fix: str


def shown(value: object) -> str:
    """A value for a message: on one line, short, without the user and password of a URL."""
    return told(repr(value) if isinstance(value, str) else str(value))


def told(text: str) -> str:
    """A text for a message: short, without the user and password of a URL."""
    text = _USERINFO.sub("***", text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def listed(problems: Sequence[Problem], heading: str) -> str:
    """All problems as one text for a terminal."""
    blocks = [
        f"{problem.what}\n  found   {problem.found}\n  needed  {problem.needed}\n  fix     {problem.fix}"
        for problem in problems
    ]
    return "\n\n".join([heading, *blocks])


def counted(number: int, thing: str) -> str:
    """A number with its noun."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
