"""Documentation of the action of this name, where ansible-doc looks for it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt
short_description: Install packages of the distribution, and show what the host receives meanwhile
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Runs M(ansible.builtin.apt) with its options, and shows from time to time how much the host has received.
options: {}
"""

EXAMPLES = r"""
- name: Install the driver
  wanmetal.comfyui.apt:
    name: nvidia-driver
"""

RETURN = r"""
cache_updated:
  description: Whether the lists were updated. The other results are those of M(ansible.builtin.apt), too.
  type: bool
  returned: success
"""
