from __future__ import annotations

DOCUMENTATION = r"""
name: imported_settings
short_description: Settings for what another installation of ComfyUI has
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Turns what M(wanmetal.comfyui.installation_info) has found, a snapshot of ComfyUI-Manager or a C(comfy-build.yaml)
    into a file for an inventory. What cannot be taken over is in its comments.
positional: _input
options:
  _input:
    description: What was found, or the text of the file.
    type: raw
    required: true
  source:
    description: The folder or the file, for people.
    type: str
    required: true
  host:
    description: The host, for people.
    type: str
    default: ""
  catalogue:
    description: The lock C(models).
    type: dict
    required: true
  shipped:
    description: Names of the packs that the variant has.
    type: list
    elements: str
    default: []
  repositories:
    description: Repositories of packs by name, for those that come from ComfyUI's registry.
    type: dict
    default: {}
  comfyui:
    description: The pinned ComfyUI, with C(version) and C(commit).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show the settings for a snapshot
  ansible.builtin.debug:
    msg: >-
      {{ lookup('ansible.builtin.file', 'snapshot.json')
         | wanmetal.comfyui.imported_settings('snapshot.json', catalogue=lookup('wanmetal.comfyui.lock', 'models')) }}
"""

RETURN = r"""
_value:
  description: C(text), the file, and C(notes), what is left to a person.
  type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import installation


def imported_settings(found: object, source: str, *, host: str = "", **known: Any) -> dict[str, Any]:
    """Turn what was found into a file; see the documentation above."""
    try:
        read = found if isinstance(found, Mapping) else installation.read(str(found))
    except ValueError as error:
        raise AnsibleFilterError(f"{source}: {error}") from error
    made = installation.settings(read, **known)
    return {"text": installation.fragment(made, source=source, host=host), "notes": made["notes"]}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"imported_settings": imported_settings}
