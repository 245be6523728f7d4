"""Documentation of the action of this name, where ansible-doc looks for it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: validate_settings
short_description: Check the settings of a host before anything connects to it
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Runs on the controller and connects to nothing. Changes nothing.
  - Checks the host's variables against the argument specs of all roles of this collection, and against rules on
    ranges, forms and contradictions.
  - Names that inventory, group_vars or the command line set, that begin like one of ours and that no role knows,
    are reported with the closest name that is known, unless C(preflight_skip) holds V(names).
  - All that is wrong comes in one message. It names each variable, the value found, the value needed and the fix.
    Values of secret settings (C(no_log), and names that end with C(_environment), C(_key), C(_password),
    C(_secret) or C(_token)) are not shown.
options: {}
"""

EXAMPLES = r"""
- name: Check the settings
  wanmetal.comfyui.validate_settings:
"""

RETURN = r"""
msg:
  description: That all is in order, or the list of what is not.
  type: str
  returned: always
places:
  description: What settings name on the host, C(users), C(groups) and C(folders), each by setting.
  type: dict
  returned: success
"""
