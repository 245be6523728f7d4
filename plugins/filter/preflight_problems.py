from __future__ import annotations

DOCUMENTATION = r"""
name: preflight_problems
short_description: Say what keeps a plan from working on a host
version_added: 0.1.0
author: The wanmetal team
description:
  - Compares a plan with the state of a host.
positional: state, skip, allow_untested_os
options:
  _input:
    description: The plan, from P(wanmetal.comfyui.preflight_plan#filter).
    type: dict
    required: true
  state:
    description:
      - The host, from M(wanmetal.comfyui.host_state), with the filesystems of all paths and the answers of all URLs
        of the plan.
    type: dict
    required: true
  skip:
    description: Kinds of problems that are left out.
    type: list
    elements: str
    choices: [os, arch, systemd, disk, memory, gpu, ports, time, sources]
    default: []
  allow_untested_os:
    description: Whether operating systems and architectures pass that this collection is not tested on.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Stop where the host is not fit
  ansible.builtin.fail:
    msg: "{{ problems }}"
  when: problems | length > 0
  vars:
    problems: "{{ plan | wanmetal.comfyui.preflight_problems(preflight_host) }}"
"""

RETURN = r"""
_value:
  description:
    - A text that lists each problem with what was found, what is needed and how to fix it. Empty where there is none.
  type: str
"""

from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import preflight
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import counted, listed


def preflight_problems(
    plan: dict[str, Any], state: dict[str, Any], skip: Sequence[str] = (), allow_untested_os: bool = False
) -> str:
    """List problems; see the documentation above."""
    problems = preflight.problems(plan, state, skip=skip, allow_untested_os=allow_untested_os)
    heading = f"{counted(len(problems), 'thing')} on this host must be fixed first. Nothing has been changed."
    return listed(problems, heading) if problems else ""


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"preflight_problems": preflight_problems}
