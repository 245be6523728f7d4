"""Filter ``wanmetal.comfyui.apt_fix``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: apt_fix
short_description: Say what a failure of apt means for a driver or a toolkit
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Knows packages that are gone, packages on hold, wrong keys, repositories that do not answer, locks and full disks.
options:
  _input:
    description: What apt said.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Say it
  ansible.builtin.fail:
    msg: "The packages could not be installed: {{ ansible_failed_result.msg | wanmetal.comfyui.apt_fix }}"
"""

RETURN = r"""
_value:
  description: What was found, the fix, and the end of what apt said.
  type: str
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.driver import apt_fix


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"apt_fix": apt_fix}
