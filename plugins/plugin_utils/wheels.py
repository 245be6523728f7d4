"""Which attentions a host may try; who builds which wheel, and who gets one that is there already."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels.sageattention import (
    KITCHEN,
    SAGE,
    covers,
    sorted_architectures,
)

RECORD = "wheel.json"
"""Beside each wheel in the cache; written last."""

Need = Mapping[str, Any]
"""Of a host: ``base`` and ``version`` of the wheel, its ``architectures``, ``nvcc`` and ``cores``."""


BUILT, PACKAGE, CORE, OWN = "source-2.2", "triton-1.0.6", "comfy-kitchen", "wheel"
_WHEEL = re.compile(r"sageattention-([^-/]+)-[^/]*\.whl")


def wheel_version(url: str) -> str:
    """The version in the file name of SageAttention's wheel, or an empty string where it is none."""
    found = _WHEEL.fullmatch(unquote(url.partition("?")[0].partition("#")[0].rpartition("/")[2]))
    return found[1] if found else ""


def methods(
    names: Sequence[str],
    upstream: Mapping[str, Any],
    lane: str,
    python: str,
    lock: str,
    url: str = "",
    sha256: str = "",
) -> list[dict[str, Any]]:
    """The attentions to try, for the module ``sageattention_state``. ``lock`` is the text of the release's Python lock.

    An operator's own wheel takes the place of a build. comfy-kitchen is left out where the release has none.
    """
    cuda = upstream["lanes"][lane]["cuda"]
    torch = next(line for line in upstream["lanes"][lane]["python_constraints"] if line.startswith("torch=="))
    made_with = f"{torch} CUDA {cuda} Python {python}"
    pin = upstream["sageattention"]
    kitchen = re.search(r"^comfy-kitchen==(\S+)", lock, re.MULTILINE)

    def method(
        name: str, version: str, what: str, architectures: Mapping[str, str], attention: str = SAGE
    ) -> dict[str, Any]:
        return {
            "name": name,
            "version": version,
            "base": hashlib.sha256(f"{what} {made_with}".encode()).hexdigest()[:12],
            "architectures": [one for one, since in architectures.items() if _number(since) <= _number(cuda)],
            "attention": attention,
        }

    package = pin["package"]
    known = {
        BUILT: method(BUILT, pin["version"], pin["commit"], pin["architectures"]),
        PACKAGE: method(PACKAGE, package["version"], package["sha256"], package["architectures"]),
    }
    if kitchen:
        known[CORE] = method(CORE, kitchen[1], f"comfy-kitchen {kitchen[1]}", {}, KITCHEN)
    wanted = [name for name in names if name in known]
    if url:
        known[OWN] = method(OWN, wheel_version(url), sha256, {})
        wanted = [OWN, *(name for name in wanted if name != BUILT)]
    return [known[name] for name in wanted]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def wheel_key(version: str, base: str, architectures: Sequence[str]) -> str:
    """Name of a wheel and of its folder: the version, and a hash of all that it is made from."""
    text = "\0".join([base, *sorted_architectures(architectures)])
    return f"{version}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def read_cache(folder: Path) -> list[dict[str, Any]]:
    """The wheels on the controller, each with the path of its file. One whose hash was not recorded is not used."""
    found = []
    for record in sorted(folder.glob(f"*/{RECORD}")):
        wheel = next(iter(sorted(record.parent.glob("*.whl"))), None)
        try:
            entry = json.loads(record.read_text())
        except ValueError:
            continue
        if wheel is not None and isinstance(entry, dict) and entry.get("sha256"):
            found.append({**entry, "wheel": str(wheel)})
    return found


def plan(
    needs: Mapping[str, Need], cached: Sequence[Mapping[str, Any]], further: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each host that needs a wheel: its key and architectures, where it is, or else who builds it.

    What is in the cache is taken where it has all that the host needs. Hosts that differ in architectures alone get one
    wheel for all of them, and for the ``further`` ones.
    """
    # YAML makes numbers of capabilities that are not in quotes.
    wished = [str(one) for one in further]
    planned: dict[str, Any] = {}
    groups: dict[str, dict[str, Need]] = {}
    for host, need in needs.items():
        if not need:
            continue
        wanted = sorted_architectures([*map(str, need["architectures"]), *wished])
        fitting = [one for one in cached if one["base"] == need["base"] and covers(one["architectures"], wanted)]
        if best := min(fitting, key=lambda one: (len(one["architectures"]), one["key"]), default=None):
            planned[host] = {name: best[name] for name in ("key", "architectures", "wheel")} | {"builder": ""}
        else:
            groups.setdefault(need["base"], {})[host] = need
    for base, group in groups.items():
        architectures = sorted_architectures(
            [*wished, *(str(one) for need in group.values() for one in need["architectures"])]
        )
        # The most cores; among equals the first of the play.
        builder = max(group, key=lambda host: (bool(group[host]["nvcc"]), int(group[host]["cores"])))
        key = wheel_key(group[builder]["version"], base, architectures)
        for host in group:
            planned[host] = {"key": key, "architectures": architectures, "wheel": "", "builder": builder}
    return planned
