#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: python_lock
short_description: Resolve Python requirements into a lock with hashes
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Resolves the requirements of all sources together with C(uv pip compile) and writes one requirements file with
    every version and hash. Runs on the controller.
  - Versions that the lock has stay where they can, so that an unchanged lock stays as it is. The first one may begin
    with another lock.
  - A contradiction is reported with the sources that disagree and what each of them wants.
  - Tells what moved. In check mode it tells the same and writes nothing.
options:
  dest:
    description: The lock.
    type: path
    required: true
  begin_with:
    description:
      - A lock whose versions stay where they can, where O(dest) is not there yet. What moved is reported against it.
      - Where it is not there either, all versions are the newest.
    type: path
  sources:
    description: Where requirements come from. Only packages by name can be locked, no options, files or addresses.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: A short name, which stands beside the packages in the lock.
        type: str
        required: true
      file:
        description: A requirements file, or with O(sources[].group) a C(pyproject.toml).
        type: path
      group:
        description: A dependency group of the file.
        type: str
      requirements:
        description: Requirements given here, in place of a file or besides it.
        type: list
        elements: str
        default: []
      leave_out:
        description: Packages whose requirements in the file are not heeded.
        type: list
        elements: str
        default: []
  constraints:
    description: Requirements that limit versions without asking for a package.
    type: list
    elements: str
    default: []
  overrides:
    description:
      - Requirements that replace what any source wants of these packages.
      - C(opencv-python; sys_platform == "never") takes a package out.
    type: list
    elements: str
    default: []
  note:
    description: A further line of the lock's header.
    type: str
    default: ""
  only_binary:
    description: Whether packages that would be built from their sources are refused.
    type: bool
    default: false
  python_version:
    description: The lowest Python to resolve for, such as V(3.12). The lock serves later ones, too.
    type: str
    required: true
  linux:
    description: Whether the lock is for Linux on x86_64 alone, rather than for every platform.
    type: bool
    default: false
  upgrade:
    description: Whether all packages move to their newest versions.
    type: bool
    default: false
  upgrade_packages:
    description: Packages that move to their newest versions.
    type: list
    elements: str
    default: []
  uv:
    description: The program uv.
    type: str
    default: uv
requirements:
  - uv
  - Python 3.11 or later for dependency groups
attributes:
  check_mode:
    description: Resolves, and writes nothing.
    support: full
  diff_mode:
    description: Shows what moved, rather than lines with hashes.
    support: full
"""

EXAMPLES = r"""
- name: Lock the Python set of variant base
  wanmetal.comfyui.python_lock:
    dest: "{{ playbook_dir }}/../files/locks/python/base-cu128.txt"
    sources:
      - name: ComfyUI
        file: /tmp/ComfyUI/requirements.txt
      - name: additions
        requirements: [requests]
    constraints: [torch==2.10.0]
    overrides: ['opencv-python; sys_platform == "never"']
    python_version: "3.11"
    linux: true
"""

RETURN = r"""
changes:
  description:
    - What moved, a line for each package, with versions before and after and who wants it.
    - Lines that begin with C(files) name versions of which other files are offered now.
  returned: success
  type: list
  elements: str
  sample: ["moved   numpy 2.3.4 -> 2.3.5, wanted by ComfyUI, torch"]
packages:
  description: How many packages are locked.
  returned: success
  type: int
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.python import (
    LockError,
    Target,
    changes,
    command,
    conflict,
    header,
    parse_lock,
    plain,
    read_group,
    without,
    write_sources,
)


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "begin_with": {"type": "path"},
            "sources": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "file": {"type": "path"},
                    "group": {"type": "str"},
                    "requirements": {"type": "list", "elements": "str", "default": []},
                    "leave_out": {"type": "list", "elements": "str", "default": []},
                },
                "required_by": {"group": "file"},
                "required_one_of": [["file", "requirements"]],
            },
            "constraints": {"type": "list", "elements": "str", "default": []},
            "overrides": {"type": "list", "elements": "str", "default": []},
            "note": {"type": "str", "default": ""},
            "only_binary": {"type": "bool", "default": False},
            "python_version": {"type": "str", "required": True},
            "linux": {"type": "bool", "default": False},
            "upgrade": {"type": "bool", "default": False},
            "upgrade_packages": {"type": "list", "elements": "str", "default": []},
            "uv": {"type": "str", "default": "uv"},
        },
        supports_check_mode=True,
    )
    dest = Path(module.params["dest"])
    try:
        before = dest.read_text(encoding="utf-8") if dest.exists() else ""
        begin = Path(module.params["begin_with"] or dest)
        begun_with = before or (begin.read_text(encoding="utf-8") if begin.exists() else "")
        with tempfile.TemporaryDirectory() as folder:
            after = _resolve(module, Path(folder), begun_with)
    except (LockError, OSError, UnicodeDecodeError) as error:
        module.fail_json(msg=f"{dest.name}: {error}")
    moved = changes(begun_with, after)
    if before != after and not module.check_mode:
        draft = Path(module.tmpdir) / "lock.txt"
        draft.write_text(after, encoding="utf-8")
        module.atomic_move(str(draft), str(dest))
        module.set_mode_if_different(str(dest), "0644", False)
    told = "\n".join(moved or ["the same packages, with other comments"])
    beside = "" if before == begun_with else f", beside {begin}"
    module.exit_json(
        changed=before != after,
        changes=moved,
        packages=len(parse_lock(after)),
        diff={"prepared": f"{dest}{beside}\n{told}\n"} if before != after else {},
    )


def _resolve(module: AnsibleModule, folder: Path, before: str) -> str:
    params = module.params
    target = Target(
        params["python_version"],
        params["linux"],
        tuple(params["constraints"]),
        tuple(params["overrides"]),
        params["upgrade"],
        tuple(params["upgrade_packages"]),
        params["only_binary"],
    )
    sources = [(one["name"], _text(one)) for one in params["sources"]]
    requirements = write_sources(folder, sources, target)
    lock = folder / "lock.txt"
    if before:
        lock.write_text(before, encoding="utf-8")
    names = [name for name, _unused in sources]
    uv = module.get_bin_path(params["uv"], required=True)
    # pylint: disable-next=ansible-bad-function
    done = subprocess.run(
        command(uv, sys.executable, names, target),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LockError(conflict(done.stderr, requirements))
    text = lock.read_text(encoding="utf-8")
    return header(names, target, params["note"]) + (plain(text) if target.linux else text)


def _text(source: dict[str, Any]) -> str:
    lines: list[str] = list(source["requirements"])
    if source["file"]:
        text = Path(source["file"]).read_text(encoding="utf-8-sig")
        found = read_group(text, source["group"]) if source["group"] else text.splitlines()
        lines += without(found, source["leave_out"])
    return "\n".join(lines)


if __name__ == "__main__":
    main()
