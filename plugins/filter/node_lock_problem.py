"""Filter ``wanmetal.comfyui.node_lock_problem``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: node_lock_problem
short_description: Tell whether a Python lock was made for some node packs
version_added: 0.1.0
author: The wanmetal team
description:
  - Compares the packs that the header of a lock names with those of a release.
positional: packs
options:
  _input:
    description: The text of the lock.
    type: str
    required: true
  packs:
    description: The packs, each as its C(label) from P(wanmetal.comfyui.node_packs#filter).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Check a lock
  ansible.builtin.assert:
    that: lookup('ansible.builtin.file', lock) | wanmetal.comfyui.node_lock_problem(['my-pack 0123456789ab']) == ''
"""

RETURN = r"""
_value:
  description: How they differ, or an empty text.
  type: str
  sample: made without my-pack 0123456789ab
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.custom_nodes import lock_problem


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"node_lock_problem": lock_problem}
