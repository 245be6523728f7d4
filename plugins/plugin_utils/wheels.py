"""Who builds which wheel, and who gets one that is there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels.sageattention import covers, sorted_architectures

RECORD = "wheel.json"
"""Beside each wheel in the cache; written last."""

Need = Mapping[str, Any]
"""Of a host: ``base`` and ``version`` of the wheel, its ``architectures``, ``nvcc`` and ``cores``."""


def wheel_key(version: str, base: str, architectures: Sequence[str]) -> str:
    """Name of a wheel and of its folder: the version, and a hash of all that it is made from."""
    text = "\0".join([base, *sorted_architectures(architectures)])
    return f"{version}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def read_cache(folder: Path) -> list[dict[str, Any]]:
    """The wheels on the controller, each with the path of its file."""
    found = []
    for record in sorted(folder.glob(f"*/{RECORD}")):
        wheel = next(iter(sorted(record.parent.glob("*.whl"))), None)
        try:
            entry = json.loads(record.read_text())
        except ValueError:
            continue
        if wheel is not None and isinstance(entry, dict):
            found.append({**entry, "wheel": str(wheel)})
    return found


def plan(
    needs: Mapping[str, Need],
    cached: Sequence[Mapping[str, Any]],
    further: Sequence[str],
    there: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """For each host that needs a wheel: its key and architectures, where it is, or else who builds it.

    What is in the cache is taken where it has all that the host needs, or else what a host has: ``there`` are its
    wheels, and the ``builder`` is then who gets it from the ``giver``. The others that differ in architectures alone
    get one wheel for all of them, and for the ``further`` ones.
    """
    here = [{**one, "giver": host} for host, wheels in (there or {}).items() for one in wheels if one.get("wheel")]
    # YAML makes numbers of capabilities that are not in quotes.
    wished = [str(one) for one in further]
    planned: dict[str, Any] = {}
    groups: dict[str, dict[str, Need]] = {}
    for host, need in needs.items():
        if not need:
            continue
        wanted = sorted_architectures([*map(str, need["architectures"]), *wished])
        best = _smallest(cached, need["base"], wanted)
        given = best or _smallest(here, need["base"], wanted)
        if best:
            planned[host] = _order(best, wheel=best["wheel"])
        elif given:
            same = [one["builder"] for one in planned.values() if one["key"] == given["key"] and one["giver"]]
            planned[host] = _order(given, builder=(same or [host])[0], giver=given["giver"], given=given["wheel"])
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
            planned[host] = _order({"key": key, "architectures": architectures}, builder=builder)
    return planned


def _smallest(wheels: Sequence[Mapping[str, Any]], base: str, wanted: Sequence[str]) -> Mapping[str, Any] | None:
    """Of the wheels that serve, the one for the fewest architectures."""
    fitting = [one for one in wheels if one["base"] == base and covers(one["architectures"], wanted)]
    return min(fitting, key=lambda one: (len(one["architectures"]), one["key"]), default=None)


def _order(what: Mapping[str, Any], **known: str) -> dict[str, Any]:
    order = {"key": what["key"], "architectures": what["architectures"]}
    return {**order, "builder": "", "wheel": "", "giver": "", "given": "", **known}
