#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: workflow_run
short_description: Check a workflow against a running ComfyUI, and run it there
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Replaces node types that ComfyUI does not have, where it is known by which, converts the workflow to API format, and
    compares it with what ComfyUI offers, its model files included.
  - Runs it with O(run), tells how far it is, and writes what it has saved into O(dest). It waits behind other jobs.
  - Where the play is interrupted, the job goes on.
options:
  url:
    description: Address of ComfyUI as the host reaches it.
    type: str
    default: http://127.0.0.1:8188
  workflow:
    description: The workflow as JSON, of either format.
    type: str
    default: ''
  run:
    description: Run it, where nothing is wrong with it.
    type: bool
    default: false
  dest:
    description: An existing folder on the host, for what is made.
    type: path
  graph:
    description: The workflow in API format. The action plugin makes it of O(workflow).
    type: dict
    default: {}
  prompt_id:
    description: A job that was started before, to be looked at. The action plugin sets it.
    type: str
    default: ''
attributes:
  check_mode:
    description: In check mode it is checked and not run.
    support: full
  diff_mode:
    description: There is no diff.
    support: none
"""

EXAMPLES = r"""
- name: Render a workflow
  wanmetal.comfyui.workflow_run:
    workflow: "{{ lookup('wanmetal.comfyui.workflow_file', 'mine.json') }}"
    run: true
    dest: /root/rendered
"""

RETURN = r"""
node_types:
  description: Node types that ComfyUI has.
  returned: success
  type: list
  elements: str
models:
  description: Model files that ComfyUI lists, each with C(id), C(name) and C(folder).
  returned: success
  type: list
  elements: dict
replaced:
  description: What is said of node types that others took the place of.
  returned: with O(workflow)
  type: list
  elements: str
problems:
  description: What ComfyUI would refuse. Nothing is run where there are any.
  returned: with O(workflow)
  type: list
  elements: str
prompt_id:
  description: The id of the job. Empty where nothing was run.
  returned: with O(workflow)
  type: str
files:
  description: Names of the files in O(dest).
  returned: with O(run), where it was run
  type: list
  elements: str
"""

import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import plain
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import (
    ComfyUIClient,
    ComfyUIError,
    outputs_of,
)

_LONGEST_NAME = 200
_LOOK_S = 5.0
_PAUSE_S = 0.25


def made(outputs: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and subfolders of the files that a job has saved."""
    for output in outputs.values():
        for entries in output.values() if isinstance(output, dict) else ():
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and entry.get("type") == "output" and isinstance(entry.get("filename"), str):
                    yield entry["filename"], str(entry.get("subfolder") or "")


def named(filename: str, taken: Sequence[str]) -> str:
    """A name for a file that ComfyUI has made, which a pack may have chosen, among the files of a folder here."""
    name = plain(PurePosixPath(filename).name).replace("$", "_")  # which Ansible takes for a variable
    name = name.encode()[-_LONGEST_NAME:].decode("utf-8", "ignore").lstrip(".") or "file"
    numbered = (f"{number}-{name}" for number in count(len(taken)))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def looked_at(client: ComfyUIClient, prompt_id: str, dest: Path) -> dict[str, Any]:
    """Wait a little for a job; where it has ended, take what it has made."""
    until = time.monotonic() + _LOOK_S
    while (entry := client.history(prompt_id)) is None:
        if time.monotonic() > until:
            client.assert_known(prompt_id)
            waiting = any(job[1:2] == [prompt_id] for job in client.queue()["queue_pending"])
            return {"changed": True, "over": False, "state": "waits for other jobs" if waiting else "is being rendered"}
        time.sleep(_PAUSE_S)
    files: list[str] = []
    for filename, subfolder in made(outputs_of(entry)):
        name = named(filename, files)
        with (dest / name).open("xb") as file:
            client.view(filename, subfolder, into=file)
        files.append(name)
    client.forget(prompt_id)
    return {"changed": True, "over": True, "files": files}


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8188"},
            "workflow": {"type": "str", "default": ""},
            "run": {"type": "bool", "default": False},
            "dest": {"type": "path"},
            "graph": {"type": "dict", "default": {}},
            "prompt_id": {"type": "str", "default": ""},
        },
        required_if=[("run", True, ["dest"])],
        supports_check_mode=True,
    )
    params = module.params
    try:
        client = ComfyUIClient(params["url"], 60)
        if params["prompt_id"]:
            module.exit_json(**looked_at(client, params["prompt_id"], Path(params["dest"])))
        if params["graph"]:
            module.exit_json(changed=True, prompt_id=client.submit(params["graph"]))
        module.exit_json(changed=False, object_info=client.object_info())
    except (ComfyUIError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
