#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: core_lock
short_description: Move the pins of ComfyUI and of its node packs to another version
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Finds the commit of a version of ComfyUI, and for each node pack the newest commit of the same time, and writes them
    into the locks. Comments and order stay. Runs on the controller.
  - Only the history of the repositories is fetched, without their files.
  - In check mode it says what would move, and writes nothing.
options:
  comfyui:
    description:
      - A version, such as V(0.34.0), a tag, or a commit; V(newest) is the newest version that has a tag.
      - Without it, the ages of the pins are looked up, and nothing moves.
    type: str
  packs:
    description: Packs to move to a commit that is named, by name. The others go to the newest of the same time.
    type: dict
    default: {}
  days:
    description: How much younger than ComfyUI's commit a pack may be, in days, since packs follow ComfyUI.
    type: int
    default: 14
  pinned:
    description: ComfyUI as it is pinned, with C(version), C(repository) and C(commit).
    type: dict
    required: true
  pinned_packs:
    description: The packs as they are pinned, by name, each with C(repository) and C(commit).
    type: dict
    required: true
  files:
    description: The locks that name them, by where each is written. May be the same file.
    type: dict
    default: {}
  cache_dir:
    description: Folder that keeps the histories.
    type: path
    required: true
  mirrors:
    description: Where repositories are fetched in place of their own addresses, as C(wanmetal_mirrors).
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    description: Fetches histories, and writes no lock.
    support: full
  diff_mode:
    description: Shows the lines of the locks that change.
    support: full
"""

EXAMPLES = r"""
- name: Move to another ComfyUI
  wanmetal.comfyui.core_lock:
    comfyui: 0.34.0
    pinned: "{{ lookup('wanmetal.comfyui.lock', 'upstream').comfyui }}"
    pinned_packs: "{{ lookup('wanmetal.comfyui.lock', 'custom_nodes').packs }}"
    files:
      files/locks/upstream.yml: files/locks/upstream.yml
      files/locks/custom_nodes.yml: files/locks/custom_nodes.yml
    cache_dir: ~/.cache/wanmetal/history
  delegate_to: localhost
"""

RETURN = r"""
ages:
  description: How old each pin is, a line for each.
  returned: without O(comfyui)
  type: list
  elements: str
  sample: ["ComfyUI 2f35f4a08176 of 2026-08-13, 106 days old; the newest commit is of 2026-08-22"]
moves:
  description: Each pin, where it is and where it was, a line for each.
  returned: with O(comfyui)
  type: list
  elements: str
  sample: ["ComfyUI 0.34.0 of 2026-09-02, in place of 0.33.0"]
"""

from datetime import datetime, timezone
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks import core
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.mirrors import rewrite


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "comfyui": {"type": "str"},
            "packs": {"type": "dict", "default": {}},
            "days": {"type": "int", "default": 14},
            "pinned": {"type": "dict", "required": True},
            "pinned_packs": {"type": "dict", "required": True},
            "files": {"type": "dict", "default": {}},
            "cache_dir": {"type": "path", "required": True},
            "mirrors": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    cache, mirrors = Path(params["cache_dir"]), params["mirrors"]
    try:
        comfyui = core.history(cache, rewrite(params["pinned"]["repository"], mirrors))
        packs = {
            name: core.history(cache, rewrite(pack["repository"], mirrors))
            for name, pack in params["pinned_packs"].items()
        }
        pins = {name: pack["commit"] for name, pack in params["pinned_packs"].items()}
        if not params["comfyui"]:
            pins = {"ComfyUI": params["pinned"]["commit"], **pins}
            now = datetime.now(timezone.utc)
            module.exit_json(changed=False, ages=core.ages({"ComfyUI": comfyui, **packs}, pins, now))
        moves = core.of_one_time(
            comfyui, packs, pins, params["pinned"], params["comfyui"], params["packs"], params["days"]
        )
        before, after = {}, {}
        for dest, src in params["files"].items():
            text = Path(src).read_text(encoding="utf-8")
            before[dest] = Path(dest).read_text(encoding="utf-8") if Path(dest).exists() else ""
            after[dest] = core.edit(text, moves)
        changed = [dest for dest in after if before[dest] != after[dest]]
        for number, dest in enumerate(changed):
            if not module.check_mode:
                draft = Path(module.tmpdir) / f"lock{number}"
                draft.write_text(after[dest], encoding="utf-8")
                module.atomic_move(str(draft), dest)
                module.set_mode_if_different(dest, "0644", False)
    except (core.CoreError, OSError) as error:
        module.fail_json(msg=f"The pins stay as they are: {error}")
    module.exit_json(
        changed=bool(changed),
        moves=[move.told for move in moves],
        diff=[
            {"before": before[dest], "after": after[dest], "before_header": dest, "after_header": dest}
            for dest in changed
        ],
    )


if __name__ == "__main__":
    main()
