#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: canary
short_description: Verify a ComfyUI worker by rendering
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Renders a small graph of ComfyUI's own nodes and compares the pixels of the result with what they must be.
    A status alone says nothing, as a worker that renders black frames reports success.
  - Colours and places are random in each run, so that no cached result can answer.
  - The graph is put before the jobs that wait, not before the one that runs.
  - With O(workflows), one of them is rendered as well, the first whose models and node types ComfyUI has. Its pixels
    cannot be foretold, so the number of frames, their size and rate are checked, and that they are alive.
  - What the canary saves in ComfyUI's output folder is removed afterwards when O(output_dir) is given.
options:
  url:
    description: Address of ComfyUI as the host reaches it.
    type: str
    default: http://127.0.0.1:8188
  others:
    description: Addresses of further workers of the host, which render the picture of kind V(image).
    type: list
    elements: str
    default: []
  kind:
    description:
      - V(image) renders one picture. It computes on the GPU where there is one, needs no model and is done at once.
      - V(video) renders a square that moves, saves it as mp4, and lets ComfyUI decode it again.
    type: str
    choices: [image, video]
    default: image
  workflows:
    description:
      - Workflows to choose from, as P(wanmetal.comfyui.canary_workflows#filter) makes them. None is rendered where
        ComfyUI has the models of none, or where jobs run or wait.
    type: list
    elements: dict
    default: []
  workflow_timeout:
    description: Seconds that the workflow may take, with the time to load its models.
    type: int
    default: 600
  dest:
    description: Where on the host the mp4 of the workflow, or else that of kind V(video), is written. It is replaced.
    type: path
  output_dir:
    description: ComfyUI's output folder on the host.
    type: path
  timeout:
    description: Seconds until the worker counts as unhealthy.
    type: int
    default: 60
extends_documentation_fragment:
  - ansible.builtin.files
attributes:
  check_mode:
    description: In check mode nothing is rendered, as the worker may not be there yet.
    support: full
  diff_mode:
    description: There is no diff, as each video is another one.
    support: none
"""

EXAMPLES = r"""
- name: Verify that the worker renders
  wanmetal.comfyui.canary:
    url: http://127.0.0.1:8188

- name: Render a video and keep it
  wanmetal.comfyui.canary:
    kind: video
    dest: /var/lib/wanmetal/canary.mp4
    output_dir: /var/lib/wanmetal/output
    mode: "0644"
"""

RETURN = r"""
reason:
  description: What is wrong with the worker; the task fails then. Empty when it is healthy or was not asked.
  returned: always
  type: str
rendered:
  description: Whether the worker was asked to render; false in check mode.
  returned: always
  type: bool
seconds:
  description: Seconds from the request to the verification.
  returned: always
  type: float
seed:
  description: The number that colours and places were drawn with.
  returned: when the worker was asked
  type: int
details:
  description:
    - What was found, such as C(largest_deviation) (of a channel, 0 to 255), C(frames), C(fps), C(width), C(height)
      and C(bytes) of a video, and C(left_behind), files that could not be removed.
  returned: when the worker was asked
  type: dict
workflow:
  description:
    - The workflow that was rendered, with C(name), C(seconds), C(seed) and C(details) (C(frames), C(fps), C(width),
      C(height), C(bytes)). Where none was, C(left_out) says why. Empty without O(workflows).
  returned: when the worker was asked
  type: dict
dest:
  description: Where the video is.
  returned: when O(dest) is given
  type: str
"""

import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.canary import (
    KINDS,
    LeftOutError,
    run_canary,
    run_workflow,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8188"},
            "others": {"type": "list", "elements": "str", "default": []},
            "kind": {"type": "str", "choices": list(KINDS), "default": "image"},
            "workflows": {"type": "list", "elements": "dict", "default": []},
            "workflow_timeout": {"type": "int", "default": 600},
            "dest": {"type": "path"},
            "output_dir": {"type": "path"},
            "timeout": {"type": "int", "default": 60},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    params = module.params
    if params["dest"] and params["kind"] != "video":
        module.fail_json(msg=f"dest takes the mp4 of kind video; kind is {params['kind']}")
    if params["dest"] and not module.check_mode and not Path(params["dest"]).parent.is_dir():
        module.fail_json(msg=f"dest: the folder {Path(params['dest']).parent} is not there. Make it first")
    try:
        client, *others = (ComfyUIClient(url) for url in [params["url"], *params["others"]])
    except ValueError as error:
        module.fail_json(msg=f"url: {error}")
    result: dict[str, Any] = {"changed": bool(params["dest"]), "rendered": False, "reason": "", "seconds": 0.0}
    if params["dest"]:
        result["dest"] = params["dest"]
    if module.check_mode:
        module.exit_json(**result)
    canary = run_canary(client, params["kind"], params["timeout"], output_dir=params["output_dir"])
    result.update(rendered=True, reason=canary.reason, seconds=canary.seconds, seed=canary.seed, details=canary.details)
    result["workflow"] = {}
    if not canary.ok:
        result["changed"] = False
        module.fail_json(msg=f"ComfyUI at {client.url} is not healthy: {canary.reason}", **result)
    for other in others:
        if reason := run_canary(other, "image", params["timeout"]).reason:
            result.update(changed=False, reason=f"{other.url}: {reason}")
            module.fail_json(msg=f"ComfyUI at {other.url} is not healthy: {reason}", **result)
    video = canary.video
    if params["workflows"]:
        try:
            made = run_workflow(
                client, params["workflows"], params["workflow_timeout"], output_dir=params["output_dir"]
            )
        except LeftOutError as error:
            result["workflow"] = {"left_out": str(error)}
        else:
            if made.reason:
                result.update(changed=False, reason=f"{made.kind}: {made.reason}")
                module.fail_json(msg=f"ComfyUI at {client.url} is not healthy: {result['reason']}", **result)
            video = made.video
            about = {"seconds": made.seconds, "seed": made.seed, "details": made.details}
            result["workflow"] = {"name": made.kind, **about}
    if params["dest"] and video is not None:
        _write(module, Path(params["dest"]), video)
    module.exit_json(**result)


def _write(module: AnsibleModule, dest: Path, video: bytes) -> None:
    # In module.tmpdir, Ansible would warn of a folder that it makes on a new host.
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "canary.mp4"
        draft.write_bytes(video)
        module.atomic_move(str(draft), str(dest))
    module.set_fs_attributes_if_different(module.load_file_common_arguments(module.params, path=str(dest)), False)


if __name__ == "__main__":
    main()
