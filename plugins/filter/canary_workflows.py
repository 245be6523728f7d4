from __future__ import annotations

DOCUMENTATION = r"""
name: canary_workflows
short_description: Make shipped workflows small, for the canary
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Reads shipped workflows and gives them a small size and few steps.
options:
  _input:
    description: Names of workflows that make one video of the size and length that they are told.
    type: list
    elements: str
    required: true
  catalogue:
    description: The catalogue of models, as in C(files/locks/models.yml).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Render Wan, small, where its models are there
  wanmetal.comfyui.canary:
    kind: video
    workflows: "{{ ['Wan22-5B'] | wanmetal.comfyui.canary_workflows(lookup('wanmetal.comfyui.lock', 'models')) }}"
"""

RETURN = r"""
_value:
  description: The workflows, as M(wanmetal.comfyui.canary) takes them. The filter fails for a name that none has.
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    graph:
      description: It, in API format.
      type: dict
    stand_ins:
      description: By the name of a model, the names of those that may stand in for it.
      type: dict
    frames:
      description: How many frames its video must have.
      type: int
    width:
      description: Their width in pixels.
      type: int
    height:
      description: Their height in pixels.
      type: int
    fps:
      description: Its frames a second.
      type: float
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import canary_workflows as logic


def canary_workflows(names: Sequence[str], catalogue: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make them small; see the documentation above."""
    try:
        return logic.canary_workflows(names, catalogue)
    except ValueError as error:
        raise AnsibleFilterError(f"wanmetal.comfyui.canary_workflows: {error}") from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., list[dict[str, Any]]]]:
        """Name them for Ansible."""
        return {"canary_workflows": canary_workflows}
