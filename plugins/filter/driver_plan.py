"""Filter ``wanmetal.comfyui.driver_plan``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: driver_plan
short_description: Decide what has to be done for a host's NVIDIA driver
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Decides from what M(wanmetal.comfyui.gpu_info) found.
  - A driver that works and is not older than O(minimum) stays as it is.
  - Open kernel modules are taken, unless there is a card from before Turing, which they do not run on.
options:
  _input:
    description: What M(wanmetal.comfyui.gpu_info) returned.
    type: dict
    required: true
  system:
    description: The operating system, for example V(debian-12) or V(ubuntu-24.04).
    type: str
    required: true
  minimum:
    description: The oldest driver that will do.
    type: str
    required: true
  branch:
    description: The branch that is installed where one has to be, or the first that the vendor has for the system.
    type: str
    default: "580"
  accelerator:
    description: With V(cpu) nothing is done.
    type: str
    choices: [gpu, cpu]
    default: gpu
  enabled:
    description: With V(false) nothing is installed.
    type: bool
    default: true
  source:
    description: Where packages come from. V(auto) is V(vendor), and V(ubuntu) on Ubuntu with Secure Boot.
    type: str
    choices: [auto, vendor, ubuntu]
    default: auto
  installed:
    description: Whether the driver was installed just now. What is wrong then is not fixed by installing it again.
    type: bool
    default: false
  restarted:
    description: Whether the host was restarted just now.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show what would be done
  ansible.builtin.debug:
    msg: "{{ ansible_facts['gpu_info'] | wanmetal.comfyui.driver_plan(system='debian-12', minimum='570.124.06') }}"
"""

RETURN = r"""
_value:
  description:
    - C(action) is V(none), V(install), V(restart) (of the host), or V(refuse) where nothing of that helps.
    - C(why), in words. With V(refuse), C(found), C(needed) and C(fix).
    - C(modules), V(open) or V(proprietary), C(source), V(vendor) or V(ubuntu), and the packages, C(pinning),
      C(packages) and C(headers), in the order in which they are installed.
    - C(notes), what an operator should know besides.
  type: dict
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.driver import driver_plan


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"driver_plan": driver_plan}
