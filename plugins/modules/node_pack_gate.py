#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: node_pack_gate
short_description: Try what a node pack does while it is imported, and read what its code could do
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Imports a pack on ComfyUI in a sandbox of bubblewrap without a network, where code can only be read, and records the
    connections that it tries, the programs that it starts and the files that it writes.
  - Reads its code for what a graph or a request could make it do, such as C(eval) of a text in the graph, installing
    packages, or a route that restarts ComfyUI.
  - Refuses a pack for each of these, but for what is accepted with a reason.
  - It finds what authors do openly. A pack that hides what it does can get past it.
options:
  name:
    description: The pack's folder under C(custom_nodes).
    type: str
    required: true
  path:
    description: A checkout of the pack, with its submodules.
    type: path
    required: true
  core:
    description: A checkout of ComfyUI.
    type: path
    required: true
  python:
    description: The Python of an environment with what ComfyUI and the pack need.
    type: path
    required: true
  commit:
    description: The commit of the pack, which the report names.
    type: str
    default: ""
  comfyui:
    description: The commit of ComfyUI, which the report names.
    type: str
    default: ""
  accepted:
    description: What the pack may do all the same.
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description: The kind of the finding, as in the report.
        type: str
        required: true
      where:
        description: The file in the pack, or its folder.
        type: str
        required: true
      why:
        description: Why it does no harm.
        type: str
        required: true
  timeout:
    description: Seconds that the import may take.
    type: int
    default: 600
requirements:
  - bubblewrap
attributes:
  check_mode:
    description: Tries the pack all the same, since it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
"""

EXAMPLES = r"""
- name: Try a pack
  wanmetal.comfyui.node_pack_gate:
    name: ComfyUI-KJNodes
    path: /tmp/packs/ComfyUI-KJNodes
    core: /tmp/ComfyUI
    python: /tmp/venv/bin/python
"""

RETURN = r"""
report:
  description: What was found.
  returned: success
  type: dict
  contains:
    verdict:
      description: V(passes) or V(refused).
      type: str
    reasons:
      description: Why it is refused, each with its kind, the file and line, and what was found.
      type: list
    accepted:
      description: What would refuse it and is accepted, with the reason.
      type: list
    notes:
      description: What is worth knowing, and refuses nothing.
      type: list
    why:
      description: The reasons in one line.
      type: str
    node_types:
      description: How many node types it registers.
      type: int
summary:
  description: The verdict in one line.
  returned: success
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.packs import gate


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "core": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "commit": {"type": "str", "default": ""},
            "comfyui": {"type": "str", "default": ""},
            "accepted": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {key: {"type": "str", "required": True} for key in ("kind", "where", "why")},
            },
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    name, path = module.params["name"], Path(module.params["path"])
    core, python = Path(module.params["core"]), Path(module.params["python"])
    for what, needed in (("path", path), ("core", core / "main.py"), ("python", python)):
        if not needed.exists():
            module.fail_json(msg=f"{what}: there is no {needed}")
    try:
        did = gate.tried(python, core, path, name, module.params["timeout"])
    except (gate.GateError, OSError) as error:
        module.fail_json(msg=f"{name}: {error}")
    found = gate.report(path, name, did, module.params["accepted"])
    said = f"{name} passes" if found["verdict"] == gate.PASSES else f"{name} is refused: it {found['why']}"
    found |= {key: module.params[key] for key in ("commit", "comfyui")}
    module.exit_json(changed=False, report=found, summary=said)


if __name__ == "__main__":
    main()
