from __future__ import annotations

DOCUMENTATION = r"""
name: lock
short_description: Read pinned sources and versions
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Reads files under C(files/locks) of this collection, or under the operator's own folder where that has a
    file of the same name.
options:
  _terms:
    description:
      - Names of locks, as paths below C(files/locks).
      - A name without a suffix is a YAML file and comes back as data.
      - A name that ends with C(.txt) is a requirements file and comes back as its path on the controller.
    type: list
    elements: str
    required: true
  locks_dir:
    description: The operator's own folder of locks, on the controller. Empty means none.
    type: str
    default: ""
    vars:
      - name: wanmetal_locks_dir
"""

EXAMPLES = r"""
- name: Show the pinned ComfyUI
  ansible.builtin.debug:
    msg: "{{ lookup('wanmetal.comfyui.lock', 'upstream').comfyui.commit }}"

- name: Place the requirements file of a release
  ansible.builtin.copy:
    src: "{{ lookup('wanmetal.comfyui.lock', 'python/base-cu128.txt') }}"
    dest: /opt/wanmetal/requirements.txt
    mode: "0644"
"""

RETURN = r"""
_raw:
  description:
    - One item for each name, the data of a YAML file or the path of a requirements file.
    - The lookup fails when a file is missing, naming the folders it looked into, or is no YAML mapping.
  type: list
  elements: raw
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.locks import LockError, find, load


class LookupModule(LookupBase):  # type: ignore[misc]
    """Read locks; see the documentation above."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: object) -> list[object]:
        """Return one item for each term."""
        self.set_options(var_options=variables, direct=kwargs)
        try:
            # Ansible hands over options that come from variables as they are written, templates included.
            own_dir = self._templar.template(self.get_option("locks_dir"))
            return [_read(term, own_dir) for term in terms]
        except LockError as error:
            raise AnsibleLookupError(f"wanmetal.comfyui.lock: {error}") from error


def _read(name: str, own_dir: str) -> object:
    return str(find(name, own_dir)) if name.endswith(".txt") else load(name, own_dir)
