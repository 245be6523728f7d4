from __future__ import annotations

DOCUMENTATION = r"""
name: preflight
short_description: Make one plan of what each role is going to do, and say whether a host is fit for it
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Each role says what it is going to do, its part. This makes one plan of them.
  - With the state of a host, it says what keeps the plan from working there, and shows it as lines.
positional: _input, state
options:
  _input:
    description: The parts, a list, whose keys are all optional; or the plan that was made of them.
    type: raw
    required: true
    suboptions:
      release:
        description: Id of the release that is to run.
        type: str
      version:
        description: The version that people know.
        type: str
      source:
        description: Where the release's source comes from, in words.
        type: str
      built:
        description: Whether the release is on the host already.
        type: bool
        default: true
      fetch:
        description: What is fetched, with C(what), C(url), which may be empty, and, where they are known, C(bytes).
        type: list
        elements: dict
      disk:
        description:
          - What is written, with C(path), C(bytes) and C(why), and C(files), their number, where it is large.
          - Where C(linked_to), another path, is on the same filesystem, it is C(linked_bytes) instead of C(bytes).
        type: list
        elements: dict
      ports:
        description: TCP ports that are listened on, with C(port), C(unit) and the C(option) that sets the port.
        type: list
        elements: dict
      memory_mb:
        description: Memory that is needed at least, in MiB.
        type: int
      gpu:
        description: Why a GPU is needed. Empty where it is not.
        type: str
      driver:
        description: What is going to be done for the NVIDIA driver, as P(wanmetal.comfyui.driver_plan#filter) has it.
        type: dict
      restarts:
        description: Units that are started or restarted.
        type: list
        elements: str
      urls:
        description: Addresses that have to answer. They count only if something is fetched.
        type: list
        elements: str
      problems:
        description:
          - What a role finds wrong itself, each with C(what), C(found), C(needed) and C(fix). With a C(kind), it
            can be left out of the check.
        type: list
        elements: dict
      notes:
        description: What else a role has to say.
        type: list
        elements: str
  state:
    description:
      - The host, from M(wanmetal.comfyui.host_state), with the filesystems of all paths and the answers of all URLs
        of the plan.
    type: dict
  places:
    description: The accounts and folders of the settings, from M(wanmetal.comfyui.validate_settings).
    type: dict
    default: {}
  skip:
    description: Kinds of problems that are left out.
    type: list
    elements: str
    default: []
  allow_untested_os:
    description: Whether operating systems and architectures pass that this collection is not tested on.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show the plan
  ansible.builtin.debug:
    msg: "{{ ([comfyui_plan] | wanmetal.comfyui.preflight(state=preflight_host)).lines }}"
"""

RETURN = r"""
_value:
  description:
    - C(plan), one of all parts. With a state, C(problem), a text that lists each problem with what was found, what is
      needed and how to fix it, empty where there is none, and C(lines), the plan for a terminal.
  type: dict
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import preflight as checks
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import counted, listed


def preflight(
    parts: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    places: Mapping[str, Any] | None = None,
    skip: Sequence[str] = (),
    allow_untested_os: bool = False,
) -> dict[str, Any]:
    """Plan, and compare with a host; see the documentation above."""
    try:
        plan = parts if isinstance(parts, Mapping) else checks.merge(parts)
    except ValueError as error:
        raise AnsibleFilterError(f"wanmetal.comfyui.preflight: {error}") from error
    if state is None:
        return {"plan": plan}
    found = checks.problems(plan, state, places=places or {}, skip=skip, allow_untested_os=allow_untested_os)
    heading = f"{counted(len(found), 'thing')} on this host must be fixed first. Nothing has been changed."
    return {
        "plan": plan,
        "problem": listed(found, heading) if found else "",
        "lines": checks.summary(plan, state, skip=skip),
    }


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"preflight": preflight}
