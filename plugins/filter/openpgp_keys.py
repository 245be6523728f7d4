"""Filter ``wanmetal.comfyui.openpgp_keys``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: openpgp_keys
short_description: Fingerprints of the keys in an armored file
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Computes the fingerprints from the bytes of the keys, so that a file which was fetched can be compared with a pinned
    fingerprint before anything trusts it.
  - Keys of version 4 are known, which is what repositories are signed with.
options:
  _input:
    description: The armored text.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: See that it is the key
  ansible.builtin.assert:
    that: fetched.content | b64decode | wanmetal.comfyui.openpgp_keys == ['EB693B3035CD5710E231E123A4B469963BF863CC']
"""

RETURN = r"""
_value:
  description:
    - Fingerprints of the primary keys, in capitals. Empty where the text holds none, or is damaged.
  type: list
  elements: str
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.openpgp import fingerprints


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"openpgp_keys": fingerprints}
