"""Filter ``wanmetal.comfyui.attention_methods``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: attention_methods
short_description: Tell which attentions a host may try
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Gives the methods for M(wanmetal.comfyui.sageattention_state), with what each is made from.
positional: _input
options:
  _input:
    description: Names of methods, V(source-2.2), V(triton-1.0.6) and V(comfy-kitchen).
    type: list
    elements: str
    required: true
  upstream:
    description: The lock C(upstream).
    type: dict
    required: true
  lane:
    description: The CUDA version, as in C(wanmetal_lane).
    type: str
    required: true
  python:
    description: The Python of the release, such as V(3.11).
    type: str
    required: true
  lock:
    description: The text of the release's Python lock. Where it has no comfy-kitchen, that method is left out.
    type: str
    required: true
  url:
    description: Address of an operator's own wheel of SageAttention. It takes the place of V(source-2.2).
    type: str
    default: ""
  sha256:
    description: The hash of that wheel.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Look at what there is
  wanmetal.comfyui.sageattention_state:
    root: /opt/wanmetal/sageattention
    nvcc: /usr/local/cuda-12.8/bin/nvcc
    methods: >-
      {{ ['source-2.2'] | wanmetal.comfyui.attention_methods(upstream=lookup('wanmetal.comfyui.lock', 'upstream'),
                                                             lane='cu128', python='3.11', lock='') }}
"""

RETURN = r"""
_value:
  description: The methods, each with C(name), C(version), C(base), C(architectures) and C(attention).
  type: list
  elements: dict
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.wheels import methods


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"attention_methods": methods}
