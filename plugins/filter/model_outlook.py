from __future__ import annotations

DOCUMENTATION = r"""
name: model_outlook
short_description: Join a list of model files with what a host has of them
version_added: 0.1.0
author: The wanmetal team
description:
  - Takes what P(wanmetal.comfyui.model_plan#filter) planned and what M(wanmetal.comfyui.aria2_download) found in check
    mode, and says what is missing, what it costs and how long it takes.
positional: _input, state
options:
  _input:
    description: A plan.
    type: dict
    required: true
  state:
    description: The result of M(wanmetal.comfyui.aria2_download) in check mode.
    type: dict
    required: true
  models_dir:
    description: Folder of the models on the host.
    type: str
    required: true
  rate:
    description: Bytes a second to reckon with. 0 takes what the host has measured, or assumes 100 MB/s and says so.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Show what is missing
  ansible.builtin.debug:
    msg: "{{ (planned | wanmetal.comfyui.model_outlook(found, models_dir='/var/lib/wanmetal/models')).lines }}"
"""

RETURN = r"""
_value:
  description: The plan, with these keys besides its own.
  type: dict
  contains:
    bytes_total:
      description: Size of all files, as far as it is known or estimated.
      type: int
    bytes_missing:
      description: Bytes to fetch.
      type: int
    bytes_written:
      description: Bytes of disk that are needed, temporary ones included.
      type: int
    missing:
      description: Ids of the files that are not there, or not proven yet.
      type: list
      elements: str
    sets:
      description: A table by set, with C(files), C(bytes), C(shared) with the sets above it, and C(missing).
      type: list
      elements: dict
    disks:
      description: By file system, C(free), C(needed), C(reserve), C(left) and C(enough).
      type: list
      elements: dict
    enough:
      description: Whether the disks are large enough.
      type: bool
    unwanted:
      description: Files that were fetched once, and that nothing asks for any longer.
      type: list
      elements: dict
    seconds:
      description: Estimate of the time.
      type: int
    part:
      description: The part of the plan that P(wanmetal.comfyui.preflight#filter) takes.
      type: dict
    lines:
      description: All of it for a terminal.
      type: list
      elements: str
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import part, told, with_state


def model_outlook(
    planned: Mapping[str, Any], state: Mapping[str, Any], models_dir: str, rate: int = 0
) -> dict[str, Any]:
    """Join; see the documentation above."""
    outlook = with_state(planned, state, rate)
    return {**outlook, "lines": told(outlook), "part": part(outlook, models_dir)}


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Name them for Ansible."""
        return {"model_outlook": model_outlook}
