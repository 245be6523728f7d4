from __future__ import annotations

DOCUMENTATION = r"""
name: mirror
short_description: Rewrite a URL by an ordered list of mirrors
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Each URL that is fetched passes this filter, so that a site without internet, or behind a cache, changes
    one variable.
  - The first entry whose prefix the URL begins with is used; a URL that no entry fits comes back as it is.
  - A prefix that ends with the host name fits that host only. Where the prefix ends at a slash there is one
    slash between the replacement and what follows, whether or not either of the two ends with one.
positional: _input, mirrors
options:
  _input:
    description: The URL as upstream publishes it.
    type: str
    required: true
  mirrors:
    description: The mirrors, in the order in which they are tried.
    type: list
    elements: dict
    required: true
    suboptions:
      prefix:
        description: What the URL begins with, with scheme and host.
        type: str
        required: true
      replacement:
        description: What stands in its place. C(file:///) may be used, too. It must hold no password.
        type: str
        required: true
"""

EXAMPLES = r"""
- name: Show where a file comes from
  ansible.builtin.debug:
    msg: "{{ 'https://github.com/kijai/ComfyUI-KJNodes.git' | wanmetal.comfyui.mirror(wanmetal_mirrors) }}"
  vars:
    wanmetal_mirrors:
      - prefix: https://github.com/kijai/
        replacement: file:///srv/mirror/kijai/
      - prefix: https://github.com
        replacement: http://mirror.example.org:8080/github
"""

RETURN = r"""
_value:
  description:
    - The URL to fetch from.
    - The filter fails, naming the entry, when an entry is malformed or holds a user name or a password.
  type: str
"""

from collections.abc import Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.mirrors import rewrite


def mirror(url: object, mirrors: object) -> str:
    """Rewrite a URL; see the documentation above."""
    try:
        return rewrite(url, mirrors)
    except (TypeError, ValueError) as error:
        raise AnsibleFilterError(f"wanmetal.comfyui.mirror: {error}") from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[[object, object], str]]:
        """Name them for Ansible."""
        return {"mirror": mirror}
