"""Filter ``wanmetal.comfyui.workflow_part``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: workflow_part
short_description: Check the workflows that a host gets before anything changes
version_added: 0.1.0
author: The wanmetal team
description:
  - Compares workflows with the node types that are recorded for the pinned ComfyUI and node packs, and with the models.
  - Of a commit that nothing is recorded of, it is known which node types there are, and nothing of their inputs.
options:
  _input:
    description: The C(archive) of P(wanmetal.comfyui.host_workflows#filter).
    type: str
    required: true
  files:
    description: The files of models that the host has or will have, each with C(name) and C(folder).
    type: list
    elements: dict
    required: true
  packs:
    description: The node packs of the host by name, each with its C(commit) and C(node_types).
    type: dict
    required: true
  comfyui:
    description: The commit of ComfyUI.
    type: str
    required: true
  catalogue:
    description: The catalogue of models, as in C(files/locks/models.yml).
    type: dict
    required: true
  own:
    description: Paths of the workflows of the archive that are the operator's.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Check the workflows of a host
  ansible.builtin.set_fact:
    part: >-
      {{ chosen.archive | wanmetal.comfyui.workflow_part(
           files=[], packs={}, catalogue=lookup('wanmetal.comfyui.lock', 'models'),
           comfyui=lookup('wanmetal.comfyui.lock', 'upstream').comfyui.commit) }}
"""

RETURN = r"""
_value:
  description: A part of the plan, as P(wanmetal.comfyui.preflight#filter) takes it.
  type: dict
  contains:
    problems:
      description: What is wrong, by file and node, each with C(kind), C(what), C(found), C(needed) and C(fix).
      type: list
      elements: dict
    notes:
      description:
        - Models that workflows of the operator name and that nothing fetches, and node types that may be of a pack
          which does not list its own.
      type: list
      elements: str
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workflows import part


def workflow_part(
    archive: str,
    files: Sequence[Mapping[str, Any]],
    packs: Mapping[str, Mapping[str, Any]],
    comfyui: str,
    catalogue: Mapping[str, Any],
    own: Sequence[str] = (),
) -> dict[str, Any]:
    """Check; see the documentation above."""
    return part(archive, files, packs, comfyui, catalogue, own)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Name them for Ansible."""
        return {"workflow_part": workflow_part}
