"""Filter ``wanmetal.comfyui.gate_notes``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: gate_notes
short_description: Tell what the gate of node packs found
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Gives a line for each pack that an operator adds, from the report that C(playbooks/lock.yml) keeps beside the locks.
positional: extra, comfyui
options:
  _input:
    description: The lock C(gate).
    type: dict
    required: true
  extra:
    description: The packs that an operator adds, as in the role's O(custom_nodes_extra).
    type: list
    elements: dict
    required: true
  comfyui:
    description: The commit of ComfyUI that is deployed.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show what the gate found
  ansible.builtin.debug:
    msg: >-
      {{ lookup('wanmetal.comfyui.lock', 'gate')
         | wanmetal.comfyui.gate_notes(custom_nodes_extra, '2f35f4a08176d993cded35dac3332be4f7287f41') }}
"""

RETURN = r"""
_value:
  description: A line for each pack.
  type: list
  elements: str
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.custom_nodes import gate_notes


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"gate_notes": gate_notes}
