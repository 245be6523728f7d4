"""Module ``wanmetal.comfyui.installation_info``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: installation_info
short_description: Look at an installation of ComfyUI that somebody else has made
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Reads the node packs with their repositories and commits, the models, and the options of a ComfyUI that runs from
    there.
  - A model of the size of one in O(known) is read whole and known by its sha256.
  - git runs with the rights of each repository's owner. Nothing is changed.
options:
  path:
    description: The folder of ComfyUI.
    type: path
    required: true
  known:
    description: Models by id, with C(bytes) and C(sha256), as in C(files/locks/models.yml).
    type: dict
    default: {}
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  platform:
    description: The platform.
    platforms: linux
    support: full
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
"""

EXAMPLES = r"""
- name: Look at what is there
  wanmetal.comfyui.installation_info:
    path: /srv/ComfyUI
  register: old
  become: true
"""

RETURN = r"""
installation:
  description: What was found, as P(wanmetal.comfyui.imported_settings#filter) takes it.
  type: dict
  returned: success
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.installation import InstallationError, look


def main() -> None:
    """Run; see the documentation above."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "known": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        found = look(Path(module.params["path"]), module.params["known"])
    except (InstallationError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, installation=found)


if __name__ == "__main__":
    main()
