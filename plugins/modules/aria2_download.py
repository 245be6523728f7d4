"""Module ``wanmetal.comfyui.aria2_download``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: aria2_download
short_description: Fetch a list of files with aria2c, and give them their names only when they are verified
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - One call fetches a whole list. aria2c moves the bytes, over several connections a file and several files at once.
  - A file gets a temporary name in its own folder first. It gets its final name when its size and sha256 are right and
    it is safely on the disk. What fails that is kept as C(<name>.rejected), once.
  - What was fetched before an interruption of any kind stays and is continued. A kill of aria2c or a power cut costs at
    most the last second of traffic and one piece (1 MiB) of each connection.
  - Links that expire are asked for again, with fewer connections after a refusal, and with the waiting time that a host
    asks for.
  - A file without a known sha256 is verified by the one that its host states (C(X-Linked-ETag) of Hugging Face). Where
    the host states none either, it is refused.
  - What is verified is remembered by size, time and inode, so that an unchanged run reads metadata only.
  - Only one run at a time works on a O(state_dir).
  - Tokens are sent to the hosts that they belong to, and to no host that a redirect leads to. No argument list shows
    them.
requirements:
  - aria2c (package aria2), on the host, as soon as something has to be fetched
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Name in messages and results. By default O(files[].name).
        type: str
      name:
        description: File name. May be left out for a CivitAI version, which knows it.
        type: str
      folder:
        description: Folder below O(dest). May be left out for a CivitAI version, whose type says it.
        type: str
      urls:
        description:
          - Addresses of the same bytes, http, https or file. They are used together.
          - Without a known sha256, only those that state the same one are.
        type: list
        elements: str
        default: []
      bytes:
        description: Size, where it is known.
        type: int
      about_bytes:
        description: Estimate of an unknown size, for plans.
        type: int
      sha256:
        description: The sha256, where it is known.
        type: str
      civitai:
        description: Id of a model version of CivitAI, in place of O(files[].urls).
        type: int
      file_id:
        description: Id of one of its files. By default the primary one.
        type: int
  dest:
    description: Folder that all folders are below.
    type: path
    required: true
  state_dir:
    description: Folder for the record of verified files, C(verified.json), of progress, C(progress.json), and the lock.
    type: path
    required: true
  list:
    description: Name of this list. Lists of other names in the same O(state_dir) are left alone by O(prune).
    type: str
    default: models
  user:
    description:
      - System user that fetches, and that owns the files. By default the one that the module runs as.
      - Folders directly below O(dest) are made for, or given to, this user and its group.
    type: str
  tokens:
    description:
      - Tokens by host, sent as C(Authorization) with C(Bearer).
      - A bare host stands for https. Write C(http://host:port) for a host without TLS.
    type: dict
    default: {}
  peers:
    description:
      - Addresses of servers that may have the files already, laid out like O(dest). They are used before
        O(files[].urls), which serve when no peer does.
    type: list
    elements: str
    default: []
  existing:
    description:
      - Folders with files that the host has already. One of the size of a wanted file, or of its name where the size is
        not known, is read, and where its sha256 is right it gets a second name below O(dest) in place of a download.
      - Where a link is not possible, on another file system or for a file that not everybody may read, it is copied.
    type: list
    elements: path
    default: []
  civitai_api:
    description: Where CivitAI is asked.
    type: str
    default: https://civitai.com
  connections:
    description: Connections a file, 1 to 16. After a refused link a file goes on with 4, then with 1.
    type: int
    default: 8
  parallel:
    description: Files at once.
    type: int
    default: 4
  limit:
    description: Bytes a second for all transfers together, like V(50M). Empty is no limit.
    type: str
    default: ""
  reserve:
    description: Bytes of each disk that stay free, like V(2G).
    type: str
    default: 1G
  tries:
    description: Attempts without progress before a file is given up.
    type: int
    default: 6
  pause:
    description: Seconds before the second attempt. Each further one waits twice as long.
    type: float
    default: 2
  verify:
    description: V(state) trusts the record. V(full) reads everything again.
    type: str
    choices: [state, full]
    default: state
  prune:
    description:
      - Remove files of this list that were fetched once and are not in O(files) any longer. Never after a failure.
    type: bool
    default: false
  allow_unverified:
    description: Accept files of which nothing but the size is known.
    type: bool
    default: false
  wait:
    description: Seconds to wait for another run on the same O(state_dir). 0 fails at once, naming it.
    type: int
    default: 0
  progress:
    description:
      - Seconds between lines of progress. 0 shows none.
      - In a terminal, with a single host, the line is refreshed in place each second.
    type: int
    default: 20
  program:
    description: Path to install the engine at, as a program of its own that a service can run.
    type: path
  background:
    description:
      - Name of a service that fetches in place of this run, which returns at once. It has to run O(program) with the
        arguments C(run) and C(job.json) in O(state_dir), a file that only O(user) may read, since it holds the tokens;
        the program removes it when all files are there.
      - A service that works on the same list already is left alone. Needs O(program).
    type: str
attributes:
  check_mode:
    description: Says what is there and what would be fetched. Hosts are asked only for sizes that are unknown.
    support: full
  diff_mode:
    description: Lists the files that come and go.
    support: full
  async:
    description: The action plugin runs the module in the background of the host by itself, to show progress.
    support: none
  platform:
    platforms: linux
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
"""

EXAMPLES = r"""
- name: Fetch two files
  wanmetal.comfyui.aria2_download:
    dest: /var/lib/wanmetal/models
    state_dir: /var/lib/wanmetal/models-state
    files:
      - name: wan_2.1_vae.safetensors
        folder: vae
        urls:
          - https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/vae/wan_2.1_vae.safetensors
        bytes: 253815318
        sha256: 2fc39d31359a4b0a64f55876d8ff7fa8d780956ae2cb13463b0223e15148976b
      - civitai: 12345
    tokens:
      civitai.com: "{{ vault_civitai_token }}"
"""

RETURN = r"""
files:
  description: Each file as it is now.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      type: str
    path:
      description: Where it is.
      type: str
    status:
      description:
        - V(present), V(fetched), V(failed) or V(pending) after a run.
        - V(verified), V(unverified), V(existing), V(partial) or V(missing) in check mode.
      type: str
    bytes:
      description: Its size, null where it is unknown.
      type: int
    sha256:
      description: Its sha256, once it is known. Not in check mode.
      type: str
    proof:
      description:
        - What verified it. V(catalogue) is a sha256 that was known before, V(host) one that the host stated, V(size)
          the size alone. Not in check mode.
      type: str
    note:
      description: What else there is to say, for example what a zip file held.
      type: str
    missing:
      description: Bytes to fetch. Only in check mode.
      type: int
    source:
      description: Where one with the status V(existing) lies.
      type: str
    written:
      description: Bytes that a copy of it takes, 0 where it can be linked.
      type: int
taken_over:
  description: What was linked or copied from the folders of O(existing), and from where.
  returned: always but in check mode
  type: list
  elements: str
failed_files:
  description: Files that could not be fetched, with C(id), C(file), C(kind) and C(problem).
  returned: always but in check mode
  type: list
  elements: dict
unwanted:
  description: Files of this list that were fetched once and are not asked for any longer, with C(path) and C(bytes).
  returned: always
  type: list
  elements: dict
removed:
  description: Files that O(prune) removed, or would remove.
  returned: always
  type: list
  elements: str
set_aside:
  description: Paths of what was not what it should be, and was kept.
  returned: always but in check mode
  type: list
  elements: str
fetched_bytes:
  description: Bytes of the files that were fetched.
  returned: always but in check mode
  type: int
bytes_total:
  description: Size of all files, as far as it is known.
  returned: in check mode
  type: int
bytes_missing:
  description: Bytes to fetch, as far as they are known.
  returned: in check mode
  type: int
unknown_sizes:
  description: Ids of files of unknown size.
  returned: in check mode
  type: list
  elements: str
disks:
  description: By file system, C(path), C(free), C(needed), C(reserve), C(left) in bytes, and whether it is C(enough).
  returned: in check mode
  type: list
  elements: dict
enough:
  description: Whether all disks are large enough.
  returned: in check mode
  type: bool
rate:
  description: Bytes a second as measured in the last long run, or null.
  returned: in check mode
  type: float
notes:
  description: What is known already to fail, for example because two models would get one file name.
  returned: in check mode
  type: list
  elements: str
aria2c:
  description: Whether aria2c is installed.
  returned: in check mode
  type: bool
program:
  description: Whether O(program) is V(missing), V(outdated) or V(current). Empty without it.
  returned: in check mode
  type: str
background:
  description: Whether a service works on the list now.
  returned: with O(background)
  type: bool
"""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import background, existing, plan
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.engine import (
    LOCK,
    Engine,
    Outcome,
    discard,
    make_folders,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.record import Record
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Request, parse
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import BusyError, as_user, exclusive


def take_over(request: Request) -> dict[str, str]:
    """Link, or copy, what the host has already; return how each came, by its path."""
    if not request.settings.existing:
        return {}
    found = plan.look(request, Record(request.settings.state_dir))
    ids = {item.id for item in found if item.status == "existing"}
    if ids:
        make_folders(request)
    wanted = [item for item in request.wanted if item.id in ids]
    taken = existing.take_over(request, wanted, request.settings.state_dir / LOCK)
    for path in taken:
        for left in list(plan.parts(Path(path))):
            discard(left)
    return taken


def fetch(request: Request) -> Outcome:
    """Fetch in this process."""
    make_folders(request)
    user = as_user(request.user) if request.user else contextlib.nullcontext()
    with user, exclusive(request.settings.state_dir / LOCK, request.wait_s) as lock:
        engine = Engine(request.wanted, request.settings, lock)
        signal.signal(signal.SIGTERM, lambda *_unused: engine.stop())
        if request.read_again:
            engine.read_again()
        return engine.run()


def as_result(outcome: Outcome) -> dict[str, Any]:
    """Turn an outcome into what the module returns."""
    return {
        "changed": outcome.changed,
        "files": outcome.files,
        "failed_files": outcome.failed,
        "unwanted": outcome.unwanted,
        "removed": outcome.removed,
        "set_aside": outcome.set_aside,
        "fetched_bytes": outcome.fetched_bytes,
        "diff": plan.diff([item for item in outcome.files if item["status"] == "fetched"], outcome.removed),
    }


def failures(outcome: Outcome) -> str:
    """Say what went wrong, a line for each file."""
    lines = [f"{item['file']}: {item['problem']}" for item in outcome.failed]
    return f"{len(lines)} of {len(outcome.files)} files could not be fetched: " + "\n".join(lines)


def main() -> None:
    """Run; see the documentation above."""
    os.umask(0o022)  # whatever the host has: services read what is made here
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "id": {"type": "str"},
                    "name": {"type": "str"},
                    "folder": {"type": "str"},
                    "urls": {"type": "list", "elements": "str", "default": [], "no_log": True},
                    "bytes": {"type": "int"},
                    "about_bytes": {"type": "int"},
                    "sha256": {"type": "str"},
                    "civitai": {"type": "int"},
                    "file_id": {"type": "int"},
                },
            },
            "dest": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "list": {"type": "str", "default": "models"},
            "user": {"type": "str"},
            "tokens": {"type": "dict", "default": {}, "no_log": True},
            "peers": {"type": "list", "elements": "str", "default": []},
            "existing": {"type": "list", "elements": "path", "default": []},
            "civitai_api": {"type": "str", "default": "https://civitai.com"},
            "connections": {"type": "int", "default": 8},
            "parallel": {"type": "int", "default": 4},
            "limit": {"type": "str", "default": ""},
            "reserve": {"type": "str", "default": "1G"},
            "tries": {"type": "int", "default": 6},
            "pause": {"type": "float", "default": 2},
            "verify": {"type": "str", "choices": ["state", "full"], "default": "state"},
            "prune": {"type": "bool", "default": False},
            "allow_unverified": {"type": "bool", "default": False},
            "wait": {"type": "int", "default": 0},
            "progress": {"type": "int", "default": 20},
            "program": {"type": "path"},
            "background": {"type": "str"},
        },
        required_by={"background": "program"},
        supports_check_mode=True,
    )
    program, unit = module.params["program"], module.params["background"]
    try:
        request = parse(module.params)
        standing = background.state(program)
        installing = standing in {"missing", "outdated"}
        if module.check_mode:
            seen = plan.make(request)
            module.exit_json(**{**seen, "changed": seen["changed"] or installing, "program": standing})
        if installing:
            background.install(program)
        taken = take_over(request)
        if unit:
            seen = plan.make(request)
            busy = seen["changed"] or request.read_again
            if busy:
                make_folders(request)
            started = busy and background.start(unit, request, module.params)
            module.exit_json(
                **{
                    **seen,
                    "changed": started or installing or bool(taken),
                    "background": busy,
                    "taken_over": list(taken.values()),
                }
            )
        outcome = fetch(request)
    except BusyError as busy:
        module.fail_json(
            msg=f"another download runs on this host ({busy}); wait for it, or give this one time to wait",
            failed_files=[],
        )
    except (ValueError, LookupError, OSError, background.ServiceError) as error:
        module.fail_json(msg=str(error), failed_files=[])
    result = as_result(outcome)
    result["changed"] = outcome.changed or installing or bool(taken)
    result["taken_over"] = list(taken.values())
    if outcome.failed:
        module.fail_json(msg=failures(outcome), **result)
    if outcome.interrupted:
        module.fail_json(msg="the download was stopped; what was fetched stays, and is continued next time", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
