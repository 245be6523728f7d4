"""Filter ``wanmetal.comfyui.report_page``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: report_page
short_description: Lay out reports of workers as a page for a browser
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Makes one page of HTML that needs nothing else, with the videos in it.
options:
  _input:
    description: Reports, as P(wanmetal.comfyui.with_renders#filter) gives them.
    type: list
    elements: dict
    required: true
  missing:
    description: Names of hosts that gave no report.
    type: list
    elements: str
    required: true
  folder:
    description: Folder with the videos, C(canary-HOST.mp4).
    type: path
    required: true
  now:
    description: When they were verified.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Make the page
  ansible.builtin.copy:
    content: "{{ reports | wanmetal.comfyui.report_page(missing=[], folder='reports', now='2026-11-27 16:00') }}"
    dest: reports/report.html
    mode: "0644"
"""

RETURN = r"""
_value:
  description: The page.
  type: str
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.report_page import report_page


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"report_page": report_page}
