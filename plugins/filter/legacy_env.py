from __future__ import annotations

DOCUMENTATION = r"""
name: legacy_env
short_description: Settings of roles out of the .env file of the Docker image
version_added: 0.1.0
author: The wanmetal team
description:
  - Reads the text of a C(.env) file with the settings of the Docker image that wanmetal takes the place of, and gives
    the settings of roles that they are now. docs/from-docker.md lists them.
  - Truth values may be spelt in every usual way. Names that the image did not have are listed and do nothing.
positional: _input, given
options:
  _input:
    description: The text of the file. May be empty.
    type: str
    required: true
  given:
    description: Further values by the image's names. They win over those of the file.
    type: dict
    default: {}
  defaults:
    description: Give what the image had where the text says nothing.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Show what an old file means
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', '/srv/old/.env') | wanmetal.comfyui.legacy_env }}"
"""

RETURN = r"""
_value:
  description:
    - C(settings) are the settings by their names, secrets among them. C(unknown) are names and lines that mean nothing,
      C(problems) the values that cannot be, without secrets. C(names) are all names of the image.
  type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.legacy_env import translate


def legacy_env(text: object, given: object = None, defaults: object = True) -> dict[str, Any]:
    """Translate; see the documentation above."""
    if not isinstance(text, str) or not isinstance(given or {}, Mapping):
        raise AnsibleFilterError("wanmetal.comfyui.legacy_env: needs the text of a .env file, and a mapping as given")
    return translate(text, given if isinstance(given, Mapping) else {}, bool(defaults))


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Name them for Ansible."""
        return {"legacy_env": legacy_env}
