"""Rewriting of URLs by an ordered list of prefixes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_KEYS = {"prefix", "replacement"}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)


def rewrite(url: object, mirrors: object) -> str:
    """Return the URL with the first prefix that fits replaced, or as it came when none fits."""
    if not isinstance(url, str) or not url:
        raise ValueError(f"the URL must be a text that is not empty, found: {url!r}")
    for prefix, replacement in check(mirrors):
        if _fits(url, prefix):
            return _join(replacement, prefix, url[len(prefix) :])
    return url


def check(mirrors: object) -> list[tuple[str, str]]:
    """Return the entries as pairs; an error names the entry that is wrong."""
    if isinstance(mirrors, str) or not isinstance(mirrors, Sequence):
        raise TypeError(f"the mirrors must be a list of {{prefix, replacement}}, found {type(mirrors).__name__}")
    return [_entry(f"mirrors[{index}]", entry) for index, entry in enumerate(mirrors)]


def _entry(name: str, entry: object) -> tuple[str, str]:
    if not isinstance(entry, Mapping) or set(entry) != _KEYS:
        found = f"the keys {sorted(map(str, entry))}" if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"{name} must have exactly the keys prefix and replacement, found {found}")
    return _part(f"{name}.prefix", entry["prefix"]), _part(f"{name}.replacement", entry["replacement"])


def _part(name: str, value: object) -> str:
    match = _URL.fullmatch(value) if isinstance(value, str) else None
    if not isinstance(value, str) or match is None or not (match["authority"] or value.startswith("file:///")):
        raise ValueError(
            f"{name} must begin with a scheme and a host (https://host/..., http://...) or with file:///, "
            f"found: {value!r}"
        )
    if re.search(r"\s", value):
        raise ValueError(f"{name} must not contain white space, found: {value!r}")
    user = match["authority"].rpartition("@")[0]
    if ":" in user or (user and value.startswith("http")):
        raise ValueError(
            f"{name} holds a user name or a password (not shown). URLs end up in logs: put it into a netrc "
            "file or a git credential helper, and name the URL without it"
        )
    return value


def _fits(url: str, prefix: str) -> bool:
    if not url.startswith(prefix):
        return False
    match = _URL.fullmatch(prefix)
    names_host_only = match is not None and match["rest"] == "" and match["authority"] != ""
    # https://example.org must not catch https://example.org.elsewhere/
    return not names_host_only or url[len(prefix) : len(prefix) + 1] in {"", "/"}


def _join(replacement: str, prefix: str, rest: str) -> str:
    if prefix.endswith("/") or rest.startswith("/"):
        return f"{replacement.removesuffix('/')}/{rest.removeprefix('/')}"
    return replacement + rest
