from __future__ import annotations

DOCUMENTATION = r"""
name: workflow_api
short_description: Turn a workflow that the browser has saved into one for the API
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Resolves what exists in the browser only, as the browser does when it exports for the API. That is reroutes,
    primitives, Set and Get, Use Everywhere, subgraphs, nodes that are muted or bypassed, and the names of values.
  - A workflow that is in API format already comes back as it is.
options:
  _input:
    description: The workflow, as data.
    type: dict
    required: true
  object_info:
    description:
      - The answer of C(/object_info) of a ComfyUI that has all node types of the workflow.
      - Without it, what is recorded of the pinned ComfyUI and node packs is taken. Files of newer browsers name their
        values, and need neither.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Make a file for the API
  ansible.builtin.copy:
    content: "{{ lookup('ansible.builtin.file', 'mine.json') | from_json | wanmetal.comfyui.workflow_api | to_json }}"
    dest: mine-api.json
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description:
    - The workflow in API format, nodes by their ids.
    - The filter fails, naming node and type, where values of a node have no names.
  type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.check import read
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import from_object_info, recorded


def workflow_api(workflow: Mapping[str, Any], object_info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Convert; see the documentation above."""
    try:
        return read(workflow, from_object_info(object_info) if object_info else recorded(), strict=True)
    except ConversionError as error:
        raise AnsibleFilterError(f"wanmetal.comfyui.workflow_api: {error}") from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Name them for Ansible."""
        return {"workflow_api": workflow_api}
