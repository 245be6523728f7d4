"""Filter ``wanmetal.comfyui.with_renders``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: with_renders
short_description: Add the times of the last renders to a worker's report
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Adds C(renders), the last 30 with their C(time), C(release), seconds and whether they went C(well), the one of this
    report the last, and C(time).
options:
  _input:
    description: The report, with C(canary).
    type: dict
    required: true
  path:
    description: The report before, as JSON. It need not be there.
    type: path
    required: true
  now:
    description: When this one was made.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show how long renders took
  ansible.builtin.debug:
    msg: "{{ (report | wanmetal.comfyui.with_renders(path='report-gpu1.json', now='2026-11-27 16:00')).renders }}"
"""

RETURN = r"""
_value:
  description: The report.
  type: dict
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.report_page import with_renders


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"with_renders": with_renders}
