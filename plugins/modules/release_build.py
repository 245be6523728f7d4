"""Module ``wanmetal.comfyui.release_build``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_build
short_description: Build a release of ComfyUI beside the one that runs
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Builds the environment, checks out ComfyUI and its node packs, leads their folders to the data and compiles the
    bytecode. When all of it is on disk, the release gets its name.
  - A release that is complete is left as it is. A second run waits for the first. One that was cut off is built again.
  - The bytecode is compiled by a process without rights and without a network. A checkout with links that lead out of
    it is refused, as with M(wanmetal.comfyui.git_checkouts).
options:
  root:
    description: Folder with C(releases) and C(environments).
    type: path
    required: true
  release:
    description: Id of the release.
    type: str
    required: true
  record:
    description: What the release is, as its C(release.json) tells it.
    type: dict
    required: true
  environment:
    description: Name of its environment.
    type: str
    required: true
  requirements:
    description: The lock of the environment, as C(requirements.txt) with hashes.
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
  checkouts:
    description: As those of M(wanmetal.comfyui.git_checkouts), with O(checkouts[].dest) below the release's folder.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: A name for messages.
        type: str
        required: true
      repository:
        description: The address, rewritten already.
        type: str
        required: true
      commit:
        description: The commit, 40 hexadecimal digits.
        type: str
        required: true
      dest:
        description: The folder.
        type: str
        required: true
      submodules:
        description: Whether submodules are checked out, too.
        type: bool
        default: false
  cache_dir:
    description: The folder of the checkouts' cache.
    type: path
    required: true
  mirrors:
    description: How addresses of submodules are rewritten.
    type: list
    elements: dict
    default: []
  package:
    description:
      - The Python package to take ComfyUI from, where it is not in O(checkouts).
      - It has C(name), C(version), C(sha256), the C(folder) in it and what to C(leave_out).
    type: dict
    default: {}
  models:
    description: The folder of models. It gets what it lacks of ComfyUI's own, and the release a link to it.
    type: path
    required: true
  links:
    description: Folders in the release, each with the one outside of it that it leads to and that is made.
    type: dict
    default: {}
  user_links:
    description: The same for folders that O(user) makes.
    type: dict
    default: {}
  user:
    description: The user of the service.
    type: str
    default: ""
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
- name: Build a release
  wanmetal.comfyui.release_build:
    root: /opt/wanmetal
    release: 0.33.0-0123456789
    record: {id: 0.33.0-0123456789}
    environment: comfyui-0123456789ab
    requirements: "{{ lookup('ansible.builtin.file', 'base.txt') }}"
    python: "3.12"
    uv: /opt/wanmetal/bin/uv
    cache_dir: /var/cache/wanmetal/git
    models: /var/lib/wanmetal/models
    checkouts:
      - name: ComfyUI
        repository: https://github.com/comfyanonymous/ComfyUI.git
        commit: f8b981ae9a5676311624bbafa636a1874db79459
        dest: ComfyUI
"""

RETURN = r"""
path:
  description: The folder of the release.
  returned: success
  type: str
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.build import Link, Release, build
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.checkouts import CheckoutError, Checkouts
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.environments import Builder, BuildError


def main() -> None:
    """Run as a module."""
    required = {"type": "str", "required": True}
    place = {"type": "path", "required": True}
    checkout = {
        **dict.fromkeys(("name", "repository", "commit", "dest"), required),
        "submodules": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "root": place,
            "release": required,
            "record": {"type": "dict", "required": True},
            "environment": required,
            "requirements": required,
            "python": required,
            "uv": place,
            "checkouts": {"type": "list", "elements": "dict", "default": [], "options": checkout},
            "cache_dir": place,
            "mirrors": {"type": "list", "elements": "dict", "default": []},
            "package": {"type": "dict", "default": {}},
            "models": place,
            "links": {"type": "dict", "default": {}},
            "user_links": {"type": "dict", "default": {}},
            "user": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    release = Release(
        root=Path(params["root"]),
        name=params["release"],
        record=params["record"],
        environment=params["environment"],
        requirements=params["requirements"],
        checkouts=params["checkouts"],
        package=params["package"],
        models=Path(params["models"]),
        links=[
            *(Link(path, Path(target)) for path, target in params["links"].items()),
            *(Link(path, Path(target), params["user"]) for path, target in params["user_links"].items()),
        ],
    )
    if module.check_mode:
        module.exit_json(changed=not release.complete, path=str(release.folder))
    os.umask(0o022)
    builder = Builder(Path(params["uv"]), params["python"])
    try:
        changed = build(release, builder, Checkouts(Path(params["cache_dir"]), params["mirrors"]))
    except (BuildError, CheckoutError, LookupError, ValueError, OSError) as error:
        module.fail_json(msg=f"Release {release.name} could not be built: {error}")
    for warning in builder.warnings:
        module.warn(warning)
    module.exit_json(changed=changed, path=str(release.folder))


if __name__ == "__main__":
    main()
