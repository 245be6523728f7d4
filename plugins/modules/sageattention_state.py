"""Module ``wanmetal.comfyui.sageattention_state``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sageattention_state
short_description: What a host has of faster attention, and what has passed its test on the GPUs
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Looks at the GPUs, the driver and the compiler, and at the folders that earlier runs have made.
  - A result counts for the GPUs and the driver that it was made with.
options:
  root:
    description: Folder with a folder for each variant.
    type: path
    required: true
  methods:
    description: The ways there are, the one that is tried first at the beginning.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name for people, and in O(leave_out).
        type: str
        required: true
      version:
        description: Version of what it gives.
        type: str
        required: true
      base:
        description: What a variant is made from, apart from architectures, as a hash.
        type: str
        required: true
      architectures:
        description: Compute capabilities that it has kernels for. An empty list leaves that to the test.
        type: list
        elements: str
        required: true
      attention:
        description: What it gives, V(sage) for SageAttention or V(kitchen) for comfy-kitchen.
        type: str
        choices: [sage, kitchen]
        default: sage
  nvcc:
    description: The compiler.
    type: path
    required: true
  leave_out:
    description: Methods that this run has tried already.
    type: list
    elements: str
    default: []
  retry:
    description: Take methods that have failed as if they had not been tried, but for those in O(leave_out).
    type: bool
    default: false
  gpu_info:
    description: What M(wanmetal.comfyui.gpu_info) found. Without it, this module looks for itself.
    type: dict
    default: {}
  releases:
    description: Folder of the releases. Folders that none of them uses, and that no method has made, are removed.
    type: path
attributes:
  check_mode:
    description: Removes nothing.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  platform:
    platforms: linux
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
"""

EXAMPLES = r"""
- name: Look at SageAttention
  wanmetal.comfyui.sageattention_state:
    root: /opt/wanmetal/sageattention
    nvcc: /usr/local/cuda-12.8/bin/nvcc
    methods:
      - name: source-2.2
        version: 2.2.0
        base: 0a1b2c3d4e5f
        architectures: ["8.9", "9.0"]
"""

RETURN = r"""
gpus:
  description: Names of the GPUs that the driver has, each once.
  returned: success
  type: list
  elements: str
architectures:
  description: Their compute capabilities.
  returned: success
  type: list
  elements: str
expected:
  description: Compute capabilities of all NVIDIA GPUs in the host, also of those that have no driver yet.
  returned: success
  type: list
  elements: str
driver:
  description: Version of the driver, or an empty string.
  returned: success
  type: str
idle:
  description: Why nothing can be done on this host, or an empty string.
  returned: success
  type: str
methods:
  description: >-
    How far each method is, with C(method), C(state), C(attention), C(key), C(path), C(reason), C(log), C(base),
    C(speedup) and C(architectures) of what is there.
  returned: success
  type: list
  elements: dict
active:
  description: The fastest entry of RV(methods) that passed. Empty where workers use torch's own attention.
  returned: success
  type: dict
next:
  description: The entry of RV(methods) that is to be tried next. Empty where there is none.
  returned: success
  type: dict
settled:
  description: Whether nothing is left to try.
  returned: success
  type: bool
told:
  description: All of this in a sentence.
  returned: success
  type: str
nvcc:
  description: Version of the compiler, or an empty string.
  returned: success
  type: str
cores:
  description: Processors.
  returned: success
  type: int
removed:
  description: Folders that were removed, or would be.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels import sageattention


def main() -> None:
    """Run as a module."""
    method = {
        "name": {"type": "str", "required": True},
        "version": {"type": "str", "required": True},
        "base": {"type": "str", "required": True},
        "architectures": {"type": "list", "elements": "str", "required": True},
        "attention": {"type": "str", "choices": ["sage", "kitchen"], "default": "sage"},
    }
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "methods": {"type": "list", "elements": "dict", "required": True, "options": method},
            "nvcc": {"type": "path", "required": True},
            "leave_out": {"type": "list", "elements": "str", "default": []},
            "retry": {"type": "bool", "default": False},
            "gpu_info": {"type": "dict", "default": {}},
            "releases": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    root = Path(params["root"])
    removed = []
    try:
        if params["releases"]:
            bases = [entry["base"] for entry in params["methods"]]
            removed = sageattention.prune(root, Path(params["releases"]), bases, module.check_mode)
        found = sageattention.state(
            root, params["methods"], params["nvcc"], params["leave_out"], params["retry"], params["gpu_info"]
        )
    except OSError as error:
        module.fail_json(msg=f"SageAttention cannot be looked at: {error}")
    module.exit_json(changed=bool(removed), removed=removed, **found)


if __name__ == "__main__":
    main()
