from __future__ import annotations

DOCUMENTATION = r"""
name: host_workflows
short_description: Choose the workflows that a host has the models and node packs for
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Chooses among the shipped workflows. Where a host has another file of a model than the one that a workflow names,
    such as 16 bits in place of 8, the workflow gets that one.
  - Compares them, and those of the operator, with the node types that are recorded for the pinned ComfyUI and node
    packs, and with the models. Of a commit that nothing is recorded of, it is known which node types there are, and
    nothing of their inputs.
options:
  _input:
    description: The files that the host has or will have, each with C(id) and C(folder).
    type: list
    elements: dict
    required: true
  packs:
    description: The node packs of the host by name, each with its C(commit) and C(node_types).
    type: dict
    default: {}
  catalogue:
    description: The catalogue of models, as in C(files/locks/models.yml).
    type: dict
    required: true
  extra:
    description: Further workflows, as saved by the browser. Paths and texts.
    type: dict
    default: {}
  comfyui:
    description: The commit of ComfyUI.
    type: str
    default: ''
  profile:
    description: The host's profile of models, for advice on sets.
    type: str
    default: fp8
  locks_dir:
    description:
      - The operator's own folder of locks, as P(wanmetal.comfyui.lock#lookup) takes it. It may have the node types of
        another ComfyUI.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Show which workflows a host gets
  ansible.builtin.debug:
    msg: "{{ (files | wanmetal.comfyui.host_workflows(catalogue=lookup('wanmetal.comfyui.lock', 'models'))).names }}"
  vars:
    files: [{id: wan22-ti2v-5b-fp16, folder: diffusion_models}]
"""

RETURN = r"""
_value:
  description: What the host gets. The filter fails, naming the file, where one of O(extra) is no workflow.
  type: dict
  contains:
    names:
      description: Names of the workflows.
      type: list
      elements: str
    left_out:
      description: Names of the others, with what they lack.
      type: dict
    archive:
      description:
        - Their files and those of O(extra), for M(wanmetal.comfyui.user_files), with paths below the data folder.
      type: str
    problems:
      description: What is wrong, by file and node, each with C(kind), C(what), C(found), C(needed) and C(fix).
      type: list
      elements: dict
    notes:
      description:
        - Models that workflows of O(extra) name and that nothing fetches, and node types that may be of a pack which
          does not list its own.
      type: list
      elements: str
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workflows import for_host


def host_workflows(
    files: Sequence[Mapping[str, Any]],
    catalogue: Mapping[str, Any],
    packs: Mapping[str, Mapping[str, Any]] | None = None,
    extra: Mapping[str, str] | None = None,
    comfyui: str = "",
    profile: str = "fp8",
    locks_dir: str = "",
) -> dict[str, Any]:
    """Choose; see the documentation above."""
    try:
        return for_host(
            files, packs or {}, catalogue, extra or {}, comfyui=comfyui, profile=profile, locks_dir=locks_dir
        )
    except ValueError as error:
        raise AnsibleFilterError(f"wanmetal.comfyui.host_workflows: {error}") from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Name them for Ansible."""
        return {"host_workflows": host_workflows}
