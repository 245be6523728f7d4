"""Filter ``wanmetal.comfyui.comfyui_workers``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: comfyui_workers
short_description: The workers of a host, one for each GPU
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Tells how many processes of ComfyUI a host has, with the unit, the port and the device of each.
positional: devices
options:
  _input:
    description: How many, or V(auto) for one for each GPU, or for each slice of a GPU that MIG has cut up.
    type: raw
    required: true
  devices:
    description: What a worker may be given, each with its C(uuid), as C(devices) of M(wanmetal.comfyui.gpu_info).
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
  output:
    description: The folder of outputs. Several workers have folders of their own in it.
    type: path
    required: true
  visible:
    description:
      - What the operator sets C(CUDA_VISIBLE_DEVICES) to. With it V(auto) is one worker, and none is given a device.
    type: raw
"""

EXAMPLES = r"""
- name: Show the workers
  ansible.builtin.debug:
    msg: "{{ 'auto' | wanmetal.comfyui.comfyui_workers(devices, port=8188, base_url='http://127.0.0.1',
             output='/var/lib/wanmetal/output') }}"
"""

RETURN = r"""
_value:
  description:
    - One entry for each worker, with C(name) (its number, empty where it is the only one), C(unit), C(port), C(url),
      C(output), its folder of outputs, and C(device), a UUID, which is empty where the worker is given none.
  type: list
  elements: dict
  sample:
    - {name: "0", unit: comfyui@0.service, port: 8188, url: "http://127.0.0.1:8188", output: /o/0, device: GPU-5a1c}
    - {name: "1", unit: comfyui@1.service, port: 8189, url: "http://127.0.0.1:8189", output: /o/1, device: GPU-77fe}
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workers import workers


def _workers(
    instances: int | str,
    devices: list[dict[str, Any]],
    *,
    port: int | str,
    base_url: str,
    output: str,
    visible: object = None,
) -> list[dict[str, Any]]:
    return workers(instances, devices, port=int(port), base_url=base_url, output=output, visible=visible or None)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"comfyui_workers": _workers}
