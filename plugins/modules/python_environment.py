"""Module ``wanmetal.comfyui.python_environment``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_environment
short_description: Build a Python environment from a lock
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Builds an environment with C(uv) from a lock with hashes. Packages are installed from wheels alone, since building
    one would run its code as root.
  - The bytecode is compiled by a process without rights and without a network.
  - An environment that is complete is left as it is. Two runs at once build it once, and one that was cut off is built
    again.
  - When one is built, earlier ones of its kind go, unless a release or a unit uses them. Those lie beside it, and their
    names differ in the hash at the end.
options:
  path:
    description: Its folder, which ends in C(-) and a hash of what it is made of. The environment is C(venv) in it.
    type: path
    required: true
  requirements:
    description: The lock, as C(requirements.txt) with hashes.
    type: str
    required: true
  python:
    description: Version of Python, such as V(3.12).
    type: str
    required: true
  uv:
    description: The program C(uv).
    type: path
    required: true
attributes:
  check_mode:
    description: Says whether it would be built.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
  platform:
    platforms: linux
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
"""

EXAMPLES = r"""
- name: Build the environment of a service
  wanmetal.comfyui.python_environment:
    path: /opt/wanmetal/environments/handler-0123456789ab
    requirements: "{{ lookup('ansible.builtin.file', 'handler.txt') }}"
    python: "3.12"
    uv: /opt/wanmetal/bin/uv
"""

RETURN = r"""
path:
  description: The folder of the environment.
  returned: success
  type: str
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.environments import (
    COMPLETE,
    Builder,
    BuildError,
)


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "python": {"type": "str", "required": True},
            "uv": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    folder = Path(params["path"])
    if module.check_mode:
        module.exit_json(changed=not (folder / COMPLETE).is_file(), path=str(folder))
    os.umask(0o022)
    builder = Builder(Path(params["uv"]), params["python"])
    try:
        changed = builder.environment(folder, params["requirements"])
    except (BuildError, OSError) as error:
        module.fail_json(msg=f"{folder}: {error}")
    for warning in builder.warnings:
        module.warn(warning)
    module.exit_json(changed=changed, path=str(folder))


if __name__ == "__main__":
    main()
