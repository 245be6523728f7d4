from __future__ import annotations

DOCUMENTATION = r"""
name: preflight_plan
short_description: Merge what each role is going to do into one plan
version_added: 0.1.0
author: The wanmetal team
description:
  - Each role says what it is going to do, its part. This makes one plan of them.
  - All keys of a part are optional.
options:
  _input:
    description: The parts.
    type: list
    elements: dict
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
        description: Units that are restarted.
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
"""

EXAMPLES = r"""
- name: Show the plan
  ansible.builtin.debug:
    msg: "{{ [comfyui_plan] | wanmetal.comfyui.preflight_plan }}"
"""

RETURN = r"""
_value:
  description:
    - One plan with C(releases), C(fetch), C(disk), C(ports), C(memory_mb) (the sum), C(gpu) (a list of reasons),
      C(driver), C(restarts), C(problems), C(notes) and C(urls).
    - The filter fails where a part has a key that is not known.
  type: dict
"""

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import preflight


def preflight_plan(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge parts; see the documentation above."""
    try:
        return preflight.merge(parts)
    except ValueError as error:
        raise AnsibleFilterError(f"wanmetal.comfyui.preflight_plan: {error}") from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"preflight_plan": preflight_plan}
