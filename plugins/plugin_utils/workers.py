"""How many workers a host has, and what each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNIT = "comfyui.service"


def devices(gpus: Sequence[Mapping[str, Any]]) -> list[str]:
    """UUIDs of what can be given to a worker of its own: GPUs, and the slices of those that MIG has cut up."""
    found: list[str] = []
    for gpu in gpus:
        slices = [str(part["uuid"]) for part in gpu.get("mig_devices") or []]
        found.extend(slices or ([str(gpu["uuid"])] if gpu.get("uuid") else []))
    return found


def count(instances: int | str, gpus: Sequence[Mapping[str, Any]], visible: object = None) -> int:
    """Number of workers. With ``auto`` one for each device, or one alone where the operator has chosen devices."""
    if str(instances) != "auto":
        return int(instances)
    return 1 if visible is not None else max(1, len(devices(gpus)))


def workers(
    instances: int | str,
    gpus: Sequence[Mapping[str, Any]],
    *,
    port: int,
    base_url: str,
    visible: object = None,
) -> list[dict[str, Any]]:
    """The workers of a host, each with ``name``, ``unit``, ``port``, ``url`` and ``device``.

    A single one is the service itself and sees every GPU. Of several, each has a port of its own and one device; where
    there are more workers than devices, they share them in turn.
    """
    number = count(instances, gpus, visible)
    if number == 1:
        return [{"name": "", "unit": UNIT, "port": port, "url": f"{base_url}:{port}", "device": ""}]
    known = [] if visible is not None else devices(gpus)
    return [
        {
            "name": str(index),
            "unit": UNIT.replace(".", f"@{index}."),
            "port": port + index,
            "url": f"{base_url}:{port + index}",
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
