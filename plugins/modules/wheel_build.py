"""Module ``wanmetal.comfyui.wheel_build``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wheel_build
short_description: Build a Python wheel with a compiler, within limits
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Builds a wheel in a transient systemd unit, which has a user of its own, no network, and limits. It goes on when the
    connection breaks, and the next run joins it.
  - Shows how far it is while it runs.
  - A build that fails does not fail the task; RV(reason) says why, and O(log) all of it.
options:
  name:
    description: Name of the build, which its unit carries too. Two builds of a name never run at once.
    type: str
    required: true
  source:
    description: Folder with C(setup.py).
    type: path
    required: true
  python:
    description: The Python that it is built with, and for.
    type: path
    required: true
  tools:
    description: Folders with what a build needs beside that Python's own packages, such as setuptools.
    type: list
    elements: path
    default: []
  dest:
    description: Folder that gets the wheel. One that is there is taken as built.
    type: path
    required: true
  log:
    description: File that gets what the build says.
    type: path
    required: true
  environment:
    description: Environment of the build, for example C(CUDA_HOME) and C(TORCH_CUDA_ARCH_LIST).
    type: dict
    default: {}
  architectures:
    description: Compute capabilities that it is compiled for, for C(TORCH_CUDA_ARCH_LIST).
    type: list
    elements: str
    default: []
  threads:
    description:
      - Threads of compilers that may run at once. V(0) takes as many as cores and memory allow.
      - C(MAX_JOBS), C(EXT_PARALLEL) and C(NVCC_APPEND_FLAGS) follow from it, where O(environment) does not have them.
    type: int
    default: 0
  memory_max:
    description: Memory that it may take, as in C(MemoryMax) of a unit.
    type: str
    default: 90%
  timeout:
    description: Seconds that it may take.
    type: int
    default: 7200
  wait:
    description: Seconds to wait for the end in one call to the host; the action asks again until it is there.
    type: int
    default: 10
attributes:
  check_mode:
    description: Says whether there is a wheel.
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
- name: Build it
  wanmetal.comfyui.wheel_build:
    name: something
    source: /srv/something
    python: /opt/environment/bin/python
    dest: /srv/wheels
    log: /srv/wheels/build.log
    environment:
      CUDA_HOME: /usr/local/cuda-12.8
    architectures: ["8.9", "9.0"]
"""

RETURN = r"""
state:
  description: V(built), V(failed), or V(running) where it has not ended within O(wait) seconds.
  returned: success
  type: str
wheel:
  description: Path of the wheel. Empty where there is none.
  returned: success
  type: str
sha256:
  description: Its hash. Empty where there is none.
  returned: success
  type: str
reason:
  description: Why it failed, or an empty string.
  returned: success
  type: str
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels.build import Build, Builder, environment


def main() -> None:
    """Run as a module."""
    os.umask(0o022)  # whatever the host has: services read what is made here
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "source": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "tools": {"type": "list", "elements": "path", "default": []},
            "dest": {"type": "path", "required": True},
            "log": {"type": "path", "required": True},
            "environment": {"type": "dict", "default": {}},
            "architectures": {"type": "list", "elements": "str", "default": []},
            "threads": {"type": "int", "default": 0},
            "memory_max": {"type": "str", "default": "90%"},
            "timeout": {"type": "int", "default": 7200},
            "wait": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    params = module.params
    build = Build(
        params["name"],
        Path(params["source"]),
        Path(params["python"]),
        tuple(Path(folder) for folder in params["tools"]),
        Path(params["dest"]),
        Path(params["log"]),
        environment(params["environment"], params["architectures"], params["threads"]),
        params["memory_max"],
        params["timeout"],
    )
    builder = Builder(build)
    try:
        if module.check_mode:
            wheel = builder.wheel()
            module.exit_json(changed=wheel is None, state="built", wheel=str(wheel or ""), sha256="", reason="")
        begun = builder.begin()
        told = builder.wait(params["wait"])
    except OSError as error:
        module.fail_json(msg=f"{params['name']} cannot be built: {error}")
    module.exit_json(changed=begun, **told)


if __name__ == "__main__":
    main()
