"""Filter ``wanmetal.comfyui.comfyui_worker_files``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: comfyui_worker_files
short_description: The environment files of workers
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Makes what each of several workers has for itself, its port and its device, for the option C(config) of
    M(wanmetal.comfyui.release_switch).
positional: folder
options:
  _input:
    description: The workers, as P(wanmetal.comfyui.comfyui_workers#filter) gives them.
    type: list
    elements: dict
    required: true
  folder:
    description: Where the files belong.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Show them
  ansible.builtin.debug:
    msg: "{{ comfyui_workers | wanmetal.comfyui.comfyui_worker_files('/etc/wanmetal') }}"
"""

RETURN = r"""
_value:
  description: One file for each worker, with C(dest) and C(content).
  type: list
  elements: dict
  sample:
    - {dest: /etc/wanmetal/comfyui@0.env, content: "COMFYUI_PORT=8188\nCUDA_VISIBLE_DEVICES=GPU-5a1c\n"}
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workers import files


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"comfyui_worker_files": files}
