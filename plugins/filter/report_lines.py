"""Filter ``wanmetal.comfyui.report_lines``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: report_lines
short_description: Lay out a worker's report for a terminal
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Turns a report into short lines.
options:
  _input:
    description:
      - The C(report) of M(wanmetal.comfyui.worker_report), with C(host), C(problems) and C(canary), the result of
        M(wanmetal.comfyui.canary).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the report
  ansible.builtin.debug:
    msg: "{{ report | wanmetal.comfyui.report_lines }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.report import report_lines


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"report_lines": report_lines}
