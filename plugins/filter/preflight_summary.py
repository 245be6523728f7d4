from __future__ import annotations

DOCUMENTATION = r"""
name: preflight_summary
short_description: Show a plan on a terminal
version_added: 0.1.0
author: The wanmetal team
description:
  - Lays out what is fetched, built, written and restarted, with what is worth knowing of the host.
positional: state, skip
options:
  _input:
    description: The plan, from P(wanmetal.comfyui.preflight_plan#filter).
    type: dict
    required: true
  state:
    description: The host, from M(wanmetal.comfyui.host_state).
    type: dict
    required: true
  skip:
    description: Kinds of problems that were not looked at, which the summary says.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show the plan
  ansible.builtin.debug:
    msg: "{{ plan | wanmetal.comfyui.preflight_summary(preflight_host) }}"
"""

RETURN = r"""
_value:
  description: A text of several lines.
  type: str
"""

from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import preflight


def preflight_summary(plan: dict[str, Any], state: dict[str, Any], skip: Sequence[str] = ()) -> str:
    """Show a plan; see the documentation above."""
    return preflight.summary(plan, state, skip=skip)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"preflight_summary": preflight_summary}
