"""The catalogue of models and what Hugging Face states of its files: what can be filled in, and what contradicts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlencode

_URL = re.compile(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/([^/]+)/([^?#]+)")
_API = "https://huggingface.co/api/models"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENTRY = re.compile(r"  ([^\s:#]+):\s*(#.*)?")
_NULL = re.compile(r"(    (?:bytes|sha256):)(?: +(?:null|~))?( +#.*)?")


class LockError(Exception):
    """The catalogue is not written in a way that can be edited."""


class Place(NamedTuple):
    """Where a file is published."""

    repository: str
    revision: str
    path: str

    def __str__(self) -> str:
        return f"{self.repository} at {self.revision}"


class Stated(NamedTuple):
    """What the Hub says of a file; small files outside of LFS have no sha256."""

    bytes: int | None
    sha256: str | None


@dataclass
class Verdict:
    """What comes out of the comparison."""

    fill: dict[str, dict[str, int | str]] = field(default_factory=dict)
    """By id, the fields that were null."""
    findings: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    """Ids of files that are not on Hugging Face."""


def places(entry: Mapping[str, Any]) -> list[Place]:
    """Return where Hugging Face has a file."""
    found = (_URL.fullmatch(url) for url in entry.get("urls") or [])
    return [Place(match[1], match[2], unquote(match[3])) for match in found if match]


def questions(files: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Return the paths to ask for, by repository and revision: each pair is one request."""
    asked: dict[tuple[str, str], list[str]] = {}
    for entry in files.values():
        for place in places(entry):
            paths = asked.setdefault((place.repository, place.revision), [])
            if place.path not in paths:
                paths.append(place.path)
    return asked


def address(repository: str, revision: str) -> str:
    """Return where a repository is asked about paths."""
    return f"{_API}/{repository}/paths-info/{quote(revision, safe='')}"


def form(paths: Iterable[str]) -> bytes:
    """Return what is sent there."""
    return urlencode([("paths", path) for path in paths]).encode()


def read(repository: str, revision: str, answer: Sequence[Any]) -> dict[Place, Stated]:
    """Read the answer. ``xetHash`` looks like a sha256, and is none."""
    found: dict[Place, Stated] = {}
    for item in answer:
        if not isinstance(item, Mapping) or item.get("type") != "file":
            continue
        size, lfs = item.get("size"), item.get("lfs")
        sha256 = str(lfs.get("oid")) if isinstance(lfs, Mapping) else ""
        stated = isinstance(size, int) and size is not True and size > 0
        found[Place(repository, revision, str(item.get("path")))] = Stated(
            size if stated else None, sha256 if _SHA256.fullmatch(sha256) else None
        )
    return found


def compare(
    files: Mapping[str, Mapping[str, Any]], stated: Mapping[Place, Stated], unheard: Iterable[tuple[str, str]] = ()
) -> Verdict:
    """Compare the catalogue with what was stated; ``unheard`` are questions without an answer."""
    verdict, silent = Verdict(), set(unheard)
    for id_, entry in files.items():
        found = places(entry)
        if not found:
            verdict.unasked.append(id_)
        heard = [place for place in found if place[:2] not in silent]
        findings = [problem for place in heard for problem in _against(entry, place, stated.get(place))]
        said = [stated[place] for place in heard if place in stated]
        if len({one.sha256 for one in said if one.sha256}) > 1 and not findings:
            findings.append("its addresses state different files")
        verdict.findings += [f"{id_}: {finding}" for finding in findings]
        if not findings and said:
            fill = _fill(entry, said[0])
            if fill:
                verdict.fill[id_] = fill
    return verdict


def _against(entry: Mapping[str, Any], place: Place, said: Stated | None) -> list[str]:
    if said is None:
        return [f"{place} has no {place.path}"]
    for key in ("sha256", "bytes"):
        known, new = entry.get(key), getattr(said, key)
        if known and new and known != new:
            return [f"{key} is {known} here, and {place} states {new}"]
    return []


def _fill(entry: Mapping[str, Any], said: Stated) -> dict[str, int | str]:
    return {key: value for key, value in said._asdict().items() if value and not entry.get(key)}


def edit(text: str, fill: Mapping[str, Mapping[str, int | str]]) -> str:
    """Write values in the place of nulls, and touch nothing else."""
    lines, left = [], {id_: dict(values) for id_, values in fill.items()}
    inside, id_ = False, ""
    for line in text.splitlines(keepends=True):
        if line[:1].strip() and not line.startswith("#"):
            inside, id_ = line.startswith("files:"), ""
        heading = _ENTRY.fullmatch(line.rstrip()) if inside else None
        if heading:
            id_ = heading[1].strip("'\"")
        values = left.get(id_, {})
        key = line.strip().partition(":")[0]
        null = _NULL.fullmatch(line.rstrip())
        if key in values and null:
            line = f"{null[1]} {values.pop(key)}{null[2] or ''}\n"
        if not (key == "about_bytes" and "bytes" in fill.get(id_, {})):
            lines.append(line)
    missing = [f"{id_} ({', '.join(values)})" for id_, values in left.items() if values]
    if missing:
        raise LockError(
            f"no place was found for {', '.join(missing)}. The catalogue must have 'files:', below it each id indented "
            "by two spaces, and below that 'bytes: null' and 'sha256: null', each on a line of its own, by four"
        )
    return "".join(lines)


def told(fill: Mapping[str, Mapping[str, int | str]]) -> list[str]:
    """Tell what was filled in, a line for each file."""
    return [f"{id_}: {', '.join(f'{key} {value}' for key, value in values.items())}" for id_, values in fill.items()]
