#!/usr/bin/python
"""Module ``wanmetal.comfyui.doctor``."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: doctor
short_description: Find out why a worker does not work
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Reads a host, and what the last deploy said of it, and names likely causes with their fix. Changes nothing there.
  - Writes a support bundle on the controller, with the journal, the state of services, versions, GPU and disks. Secrets
    are taken out on the host, before anything leaves it.
options:
  root:
    description: Folder of the releases.
    type: path
    required: true
  data:
    description: ComfyUI's folder of data.
    type: path
    required: true
  cache:
    description: Folder of what can be fetched again.
    type: path
    required: true
  config:
    description: Folder of the services' settings.
    type: path
    required: true
  user:
    description: ComfyUI's user.
    type: str
    required: true
  addresses:
    description: Addresses that have to answer with status 200, by unit.
    type: dict
    default: {}
  ports:
    description: Ports of the services.
    type: list
    elements: int
    default: []
  accelerator:
    description: What the host is to render on.
    type: str
    choices: [gpu, cpu]
    default: gpu
  allow_remote:
    description: Services may listen on addresses that others can reach.
    type: bool
    default: false
  log:
    description: Log of the last deploy, on the controller. It need not be there.
    type: path
  bundle:
    description: Where on the controller the support bundle is written, a C(.tar.gz). Without it there is none.
    type: path
attributes:
  check_mode:
    description: Runs as usual.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
  platform:
    platforms: linux
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
"""

EXAMPLES = r"""
- name: Look for what is wrong
  wanmetal.comfyui.doctor:
    root: /opt/wanmetal
    data: /var/lib/wanmetal
    cache: /var/cache/wanmetal
    config: /etc/wanmetal
    user: wanmetal
    addresses:
      comfyui.service: http://127.0.0.1:8188/system_stats
    bundle: reports/support-gpu1.tar.gz
  register: looked
"""

RETURN = r"""
diagnoses:
  description: What is wrong, each with C(name), C(found) (lines that show it), C(times), C(cause) and C(fix).
  returned: always
  type: list
  elements: dict
lines:
  description: The same for a terminal.
  returned: always
  type: list
  elements: str
bundle:
  description: Where the support bundle is, or an empty string.
  returned: always
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.evidence import Place, evidence
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.report import no_answer


def main() -> None:
    """Run as a module: give the evidence to the action of the same name."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "data": {"type": "path", "required": True},
            "cache": {"type": "path", "required": True},
            "config": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "addresses": {"type": "dict", "default": {}},
            "ports": {"type": "list", "elements": "int", "default": []},
            "accelerator": {"type": "str", "choices": ["gpu", "cpu"], "default": "gpu"},
            "allow_remote": {"type": "bool", "default": False},
            "log": {"type": "path"},
            "bundle": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    folders = {name: Path(params[name]) for name in ("root", "data", "cache", "config")}
    module.exit_json(changed=False, **evidence(Place(user=params["user"], **folders), params["addresses"], no_answer))


if __name__ == "__main__":
    main()
