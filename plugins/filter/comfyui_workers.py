"""Filter ``wanmetal.comfyui.comfyui_workers``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: comfyui_workers
short_description: The workers of a host, one for each GPU
version_added: 0.2.0
author: The wanmetal team
description:
  - Tells how many processes of ComfyUI a host has, with the unit, the port and the device of each.
positional: gpus
options:
  _input:
    description: How many, or V(auto) for one for each GPU, or for each slice of a GPU that MIG has cut up.
    type: raw
    required: true
  gpus:
    description: The GPUs, each with C(uuid) and, where it has any, C(mig_devices), of which each has a C(uuid).
    type: list
    elements: dict
    required: true
  port:
    description: Port of the first one. Each further one has the next.
    type: int
    required: true
  base_url:
    description: Their address without the port.
    type: str
    required: true
  visible:
    description:
      - What the operator sets C(CUDA_VISIBLE_DEVICES) to. With it V(auto) is one worker, and none is given a device.
    type: raw
"""

EXAMPLES = r"""
- name: Show the workers
  ansible.builtin.debug:
    msg: "{{ 'auto' | wanmetal.comfyui.comfyui_workers(gpus, port=8188, base_url='http://127.0.0.1') }}"
"""

RETURN = r"""
_value:
  description:
    - One entry for each worker, with C(name) (its number, empty where it is the only one), C(unit), C(port), C(url) and
      C(device), a UUID, which is empty where the worker is given none.
  type: list
  elements: dict
  sample:
    - {name: "0", unit: comfyui@0.service, port: 8188, url: "http://127.0.0.1:8188", device: GPU-5a1c}
    - {name: "1", unit: comfyui@1.service, port: 8189, url: "http://127.0.0.1:8189", device: GPU-77fe}
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workers import workers


def _workers(
    instances: int | str, gpus: list[dict[str, Any]], *, port: int | str, base_url: str, visible: object = None
) -> list[dict[str, Any]]:
    return workers(instances, gpus, port=int(port), base_url=base_url, visible=visible or None)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"comfyui_workers": _workers}
