"""Lookup ``wanmetal.comfyui.wheel_plan``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: wheel_plan
short_description: Who builds which wheel, and who gets one that the controller has
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Hosts that need the same wheel get it from a cache on the controller, or else one of them builds it.
  - Hosts whose needs differ in architectures alone need the same wheel, for all of these.
options:
  _terms:
    description:
      - What each host needs, as one dictionary of C(base), C(version), C(architectures), C(nvcc) and C(cores) by the
        host's name. Hosts that need nothing have an empty one.
    required: true
  cache:
    description: Folder of the wheels on the controller.
    type: str
    required: true
  further:
    description: Architectures that a new wheel is compiled for in addition.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show it
  ansible.builtin.debug:
    msg: "{{ lookup('wanmetal.comfyui.wheel_plan', needs, cache='~/.cache/wanmetal/wheels') }}"
"""

RETURN = r"""
_raw:
  description:
    - One dictionary by the hosts' names, with C(key), C(architectures), C(wheel), the path of the wheel on the
      controller, which is empty where it has to be built, and C(builder), the host that builds it.
  type: list
  elements: dict
"""

from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import wheels


class LookupModule(LookupBase):  # type: ignore[misc]
    """Ansible's entry point."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Plan; see the documentation above."""
        self.set_options(var_options=variables, direct=kwargs)
        cache = Path(self.get_option("cache")).expanduser()
        return [wheels.plan(terms[0], wheels.read_cache(cache), self.get_option("further"))]
