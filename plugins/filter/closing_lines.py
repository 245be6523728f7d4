"""Filter ``wanmetal.comfyui.closing_lines``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: closing_lines
short_description: Say in a few lines what runs on a worker, and how to reach it
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Turns a report into what a person wants to know after a deploy.
options:
  _input:
    description: The C(report) of M(wanmetal.comfyui.worker_report), with C(host) and C(problems).
    type: dict
    required: true
  ssh:
    description: The host's connection, with C(address), C(user), C(port), C(key) and C(options) as far as they are set.
    type: dict
    default: {}
  local:
    description: The host is this machine.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Say how to reach the worker
  ansible.builtin.debug:
    msg: "{{ report | wanmetal.comfyui.closing_lines(ssh={'address': 'gpu1', 'user': 'ubuntu'}) }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.report import closing_lines


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"closing_lines": closing_lines}
