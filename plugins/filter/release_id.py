"""Filter ``wanmetal.comfyui.release_id``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: release_id
short_description: Name a release by what it is made from
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Gives the id of the release that is built from some inputs. The same inputs give the same id on every controller.
positional: version
options:
  _input:
    description: Everything that makes the release, by name. Empty values are refused.
    type: dict
    required: true
  version:
    description: The version that people know, which the id starts with.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the id of a release
  ansible.builtin.debug:
    msg: "{{ {'commit': 'f8b981a', 'lock': lock | hash('sha256')} | wanmetal.comfyui.release_id('0.3.75') }}"
"""

RETURN = r"""
_value:
  description: The id, the version and ten hexadecimal digits.
  type: str
  sample: 0.3.75-5b3c1f0e9a
"""

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.release import release_id


def _release_id(inputs: dict[str, Any], version: str) -> str:
    try:
        return release_id(inputs, version)
    except ValueError as error:
        raise AnsibleFilterError(f"release_id: {error}") from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"release_id": _release_id}
