#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: git_checkouts
short_description: Check out commits of git repositories, verified and without history
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Makes all checkouts of a release in one call. All are fetched and verified first and put into place then, so that
    an error changes none of them.
  - Repositories are kept in a cache. A commit that is in the cache needs no network. One that is not is fetched
    alone where the server gives single commits, else with the history.
  - A checkout has the files of the commit and no C(.git). Each file is compared with the commit by its hash. A file
    C(.wanmetal-checkout.json) in it tells what it is.
  - What a checkout was made from is replaced as a whole; other files in its folder are lost then.
  - Git asks no questions. Files kept by git-lfs stay pointers.
options:
  checkouts:
    description: The checkouts.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: A name for messages.
        type: str
        required: true
      repository:
        description: The address, C(https://), C(http://), C(file://), C(ssh://) or C(git://), rewritten already.
        type: str
        required: true
      commit:
        description: The commit, 40 hexadecimal digits.
        type: str
        required: true
      dest:
        description: The folder, an absolute path. It may lie inside of another checkout.
        type: path
        required: true
      submodules:
        description: Whether submodules are checked out, too, and theirs.
        type: bool
        default: false
  cache_dir:
    description: The folder of the cache. It may be deleted at any time.
    type: path
    required: true
  mirrors:
    description:
      - How addresses of submodules are rewritten, as with the filter P(wanmetal.comfyui.mirror#filter).
        Relative ones follow their repository.
    type: list
    elements: dict
    default: []
  parallel:
    description: How many repositories are fetched at once.
    type: int
    default: 4
  retries:
    description: How often a fetch is tried again after an error of the network, after 2, 4, 8 ... seconds.
    type: int
    default: 3
  timeout:
    description: Seconds that one call of git may take.
    type: int
    default: 1800
  verify:
    description:
      - Whether the files of checkouts that are there are compared with their commit. A checkout with changed or missing
        files is made again. Without it, the commit noted in the checkout is trusted.
    type: bool
    default: false
requirements:
  - git >= 2.34 on the host
attributes:
  check_mode:
    description: Tells what would be made, without git and network.
    support: full
  diff_mode:
    description: Shows the commits before and after.
    support: full
"""

EXAMPLES = r"""
- name: Check out ComfyUI and a node pack
  wanmetal.comfyui.git_checkouts:
    cache_dir: /var/cache/wanmetal/git
    mirrors: "{{ wanmetal_mirrors }}"
    checkouts:
      - name: ComfyUI
        repository: "{{ 'https://github.com/comfyanonymous/ComfyUI.git' | wanmetal.comfyui.mirror(wanmetal_mirrors) }}"
        commit: f8b981ae9a5676311624bbafa636a1874db79459
        dest: /opt/wanmetal/releases/example/ComfyUI
      - name: ComfyUI_UltimateSDUpscale
        repository: https://github.com/ssitu/ComfyUI_UltimateSDUpscale
        commit: c48d60df1ee24b47c4e6acacaf1038aff2698cf3
        dest: /opt/wanmetal/releases/example/ComfyUI/custom_nodes/ComfyUI_UltimateSDUpscale
        submodules: true
"""

RETURN = r"""
checkouts:
  description: What became of each checkout, in the order asked for.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    dest:
      description: Its folder.
      type: str
    changed:
      description: Whether it was made or repaired.
      type: bool
    before:
      description: The commit that was there, V(unknown) for a folder of other origin, empty for none.
      type: str
    commit:
      description: The commit.
      type: str
    tree:
      description: Git's id of the commit's files, as found in the folder. In check mode empty for what is not there.
      type: str
    fetched:
      description: The addresses that were fetched from, submodules included. Empty when the cache had all.
      type: list
      elements: str
    differing:
      description: With O(verify), the files that were changed or missing.
      type: list
      elements: str
    extra:
      description: With O(verify), files that do not belong to the commit; they are left alone.
      type: list
      elements: str
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.checkouts import (
    CheckoutError,
    Checkouts,
    Made,
    check,
)


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "checkouts": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "repository": {"type": "str", "required": True},
                    "commit": {"type": "str", "required": True},
                    "dest": {"type": "path", "required": True},
                    "submodules": {"type": "bool", "default": False},
                },
            },
            "cache_dir": {"type": "path", "required": True},
            "mirrors": {"type": "list", "elements": "dict", "default": []},
            "parallel": {"type": "int", "default": 4},
            "retries": {"type": "int", "default": 3},
            "timeout": {"type": "int", "default": 1800},
            "verify": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    os.umask(0o022)
    checkouts = Checkouts(
        Path(params["cache_dir"]), params["mirrors"], params["parallel"], params["retries"], params["timeout"]
    )
    try:
        wanted = check(params["checkouts"])
        made = (checkouts.plan if module.check_mode else checkouts.make)(wanted, params["verify"])
    except (CheckoutError, ValueError, TypeError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.strerror}: {error.filename}")
    module.exit_json(
        changed=any(one.changed for one in made),
        checkouts=[vars(one) for one in made],
        diff={"before": _lines(made, "before"), "after": _lines(made, "commit")},
    )


def _lines(made: list[Made], what: str) -> str:
    return "".join(f"{one.dest} {getattr(one, what) or 'absent'}\n" for one in made if one.changed)


if __name__ == "__main__":
    main()
