"""How many workers a host has, and what each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNIT = "comfyui.service"


def count(instances: int | str, devices: Sequence[Mapping[str, Any]], visible: object = None) -> int:
    """Number of workers. With ``auto`` one for each device, or one alone where the operator has chosen devices."""
    if str(instances) != "auto":
        return int(instances)
    return 1 if visible is not None else max(1, len(devices))


def workers(
    instances: int | str,
    devices: Sequence[Mapping[str, Any]],
    *,
    port: int,
    base_url: str,
    output: str,
    visible: object = None,
) -> list[dict[str, Any]]:
    """The workers of a host, each with ``name``, ``unit``, ``port``, ``url``, ``output`` and ``device``.

    A single one is the service itself and sees every GPU. Of several, each has a port of its own and one device; where
    there are more workers than devices, they share them in turn.
    """
    number = count(instances, devices, visible)
    if number == 1:
        alone = {"name": "", "unit": UNIT, "port": port, "url": f"{base_url}:{port}", "output": output, "device": ""}
        return [alone]
    known = [] if visible is not None else [str(device["uuid"]) for device in devices]
    return [
        {
            "name": str(index),
            "unit": UNIT.replace(".", f"@{index}."),
            "port": port + index,
            "url": f"{base_url}:{port + index}",
            "output": f"{output}/{index}",
            "device": known[index % len(known)] if known else "",
        }
        for index in range(number)
    ]


def files(found: Sequence[Mapping[str, Any]], folder: str) -> list[dict[str, str]]:
    """The environment file of each of several workers: its port and, where it has one, its device."""
    return [
        {
            "dest": f"{folder}/comfyui@{worker['name']}.env",
            "content": f"COMFYUI_PORT={worker['port']}\n"
            + (f"CUDA_VISIBLE_DEVICES={worker['device']}\n" if worker["device"] else ""),
        }
        for worker in found
    ]
