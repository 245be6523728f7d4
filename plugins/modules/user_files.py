from __future__ import annotations

DOCUMENTATION = r"""
module: user_files
short_description: Place files for users, and never over what they have changed
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Places files, and remembers which they were. A file that has changed since is its user's, and stays.
  - What is no longer wanted is removed, unless it has changed.
  - Works with the rights of O(owner) in O(root).
options:
  root:
    description: Folder below which the files are placed.
    type: path
    required: true
  archive:
    description: The files, as P(wanmetal.comfyui.host_workflows#filter) packs them. Empty for none.
    type: str
    default: ""
  state:
    description: File that remembers what was placed. Its folder should be root's.
    type: path
    required: true
  owner:
    description: User who owns the files.
    type: str
    required: true
attributes:
  check_mode:
    description: Says what would change, and changes nothing.
    support: full
  diff_mode:
    description: Lists the paths.
    support: full
"""

EXAMPLES = r"""
- name: Place the workflows
  wanmetal.comfyui.user_files:
    root: /var/lib/wanmetal
    archive: "{{ workflows.archive }}"
    state: /opt/wanmetal/workflows.json
    owner: wanmetal
  become: true
"""

RETURN = r"""
added:
  description: Paths of new files, below O(root).
  type: list
  elements: str
  returned: success
renewed:
  description: Paths of files that were replaced by newer ones.
  type: list
  elements: str
  returned: success
removed:
  description: Paths of files that were removed.
  type: list
  elements: str
  returned: success
kept:
  description: Paths of files that users have changed, and for which there would be others.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.user_files import UserFilesError, place


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "archive": {"type": "str", "default": ""},
            "state": {"type": "path", "required": True},
            "owner": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        changes = place(
            Path(given["root"]), given["archive"], Path(given["state"]), given["owner"], check=module.check_mode
        )
    except (UserFilesError, LookupError, OSError) as error:
        module.fail_json(msg=str(error))
    before = "".join(f"{path}\n" for path in sorted([*changes.renew, *changes.remove]))
    after = "".join(
        f"{path}{' (new)' if path in changes.renew else ''}\n" for path in sorted([*changes.renew, *changes.add])
    )
    module.exit_json(
        changed=changes.any,
        added=changes.add,
        renewed=changes.renew,
        removed=changes.remove,
        kept=changes.kept,
        diff={"before_header": given["root"], "after_header": given["root"], "before": before, "after": after},
    )


if __name__ == "__main__":
    main()
