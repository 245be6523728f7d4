"""Filter ``wanmetal.comfyui.node_packs``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: node_packs
short_description: Tell what the node packs of a release mean to others
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Gives the packs of a variant and those that an operator adds, with what is checked out, locked, linked and promised.
  - Addresses are rewritten by the mirrors.
positional: variant
options:
  _input:
    description: The lock C(custom_nodes).
    type: dict
    required: true
  variant:
    description: The variant.
    type: str
    required: true
  extra:
    description: The packs that an operator adds, as in the role's O(custom_nodes_extra).
    type: list
    elements: dict
    default: []
  mirrors:
    description: How addresses are rewritten, as with the filter P(wanmetal.comfyui.mirror#filter).
    type: list
    elements: dict
    default: []
  folder:
    description: The folder that the packs are in, ComfyUI's C(custom_nodes).
    type: str
    default: ""
  python_lock:
    description:
      - The text of a Python lock. With it, the filter tells how the packs in its header differ from these, or gives
        an empty text where they do not.
    type: str
  gate:
    description: The report of the gate of node packs. With it, only the packs that it has not tried are given.
    type: dict
  comfyui:
    description: The commit of ComfyUI that O(gate) is asked about.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Check out the packs of variant wan
  wanmetal.comfyui.git_checkouts:
    cache_dir: /var/cache/wanmetal/git
    checkouts: >-
      {{ lookup('wanmetal.comfyui.lock', 'custom_nodes')
         | wanmetal.comfyui.node_packs('wan', folder='/srv/ComfyUI/custom_nodes') | map(attribute='checkout') }}
"""

RETURN = r"""
_value:
  description: The packs, or with O(python_lock) a text such as V(made without my-pack 0123456789ab).
  type: list
  elements: dict
  contains:
    name:
      description: The name of its folder.
      type: str
    origin:
      description: Its address.
      type: str
    label:
      description: Name and commit, as in the header of a Python lock.
      type: str
    release:
      description: What a release records of it, C(commit) and C(node_types), the types that it promises.
      type: dict
    checkout:
      description: Its entry for M(wanmetal.comfyui.git_checkouts).
      type: dict
    folders:
      description:
        - Folders in it that lead to the data, each with C(link), the path, C(kind), V(models) for
          weights that it reads and V(cache) for what it writes, and their names there, C(pack) and C(cache).
      type: list
      elements: dict
    accepted:
      description: What the gate would refuse and is accepted, for M(wanmetal.comfyui.node_pack_gate).
      type: list
      elements: dict
    sources:
      description: Its entries for M(wanmetal.comfyui.python_lock).
      type: list
      elements: dict
"""

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.custom_nodes import (
    PackError,
    lock_problem,
    packs,
    untried,
)


def _node_packs(
    lock: dict[str, Any],
    variant: str,
    extra: list[dict[str, Any]] | None = None,
    mirrors: object = (),
    folder: str = "",
    python_lock: str | None = None,
    gate: dict[str, Any] | None = None,
    comfyui: str = "",
) -> list[dict[str, Any]] | str:
    try:
        found = packs(lock, variant, extra or [], mirrors, folder)
    except (PackError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"node_packs: {error}") from error
    if gate is not None:
        return untried(found, gate, comfyui)
    return found if python_lock is None else lock_problem(python_lock, [pack["label"] for pack in found])


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"node_packs": _node_packs}
