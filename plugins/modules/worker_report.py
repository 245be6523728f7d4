#!/usr/bin/python
"""Module ``wanmetal.comfyui.worker_report``."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: worker_report
short_description: Report releases, services, sockets and versions of a worker
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Reads what runs on a worker, and says what is wrong with it. Changes nothing, and does not fail for what it finds.
options:
  root:
    description: Folder with C(releases), C(current) and C(previous).
    type: path
    required: true
  units:
    description: The host's services.
    type: list
    elements: str
    required: true
  workers:
    description: Addresses of ComfyUI on this host, by unit. These are added to O(units).
    type: dict
    required: true
  services:
    description: Addresses that have to answer with status 200, by unit. These are added to O(units).
    type: dict
    default: {}
  data:
    description: ComfyUI's folder of data. Workflows that were placed there are compared with what ComfyUI offers.
    type: path
  allow_remote:
    description: Services may listen on addresses that others can reach.
    type: bool
    default: false
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
- name: Ask a worker how it is
  wanmetal.comfyui.worker_report:
    root: /opt/wanmetal
    units: [comfyui.service]
    workers:
      comfyui.service: http://127.0.0.1:8188
  register: worker
"""

RETURN = r"""
report:
  description: The worker.
  returned: always
  type: dict
  contains:
    current:
      description: The release that runs, or an empty string.
      type: str
    previous:
      description: The release to go back to, or an empty string.
      type: str
    releases:
      description: All complete releases on the host.
      type: list
      elements: str
    release:
      description: What the running release was made from.
      type: dict
    verified:
      description: The release and the generation that rendered with the right pixels last.
      type: dict
    units:
      description: State of each service. Memory is in bytes.
      type: dict
    sockets:
      description: Listening TCP sockets of these services.
      type: list
      elements: dict
    versions:
      description: Versions of ComfyUI, Python and torch in the running process.
      type: dict
    devices:
      description: What ComfyUI renders on. Memory is in bytes.
      type: list
      elements: dict
    workers:
      description:
        - Of each worker by its unit, C(queue), how many jobs run and wait, and C(last_job), the last that has ended.
        - That has C(id), C(status) in ComfyUI's words, and the time C(finished).
      type: dict
    models:
      description: Model files below O(data), each with C(path), C(bytes) and C(problem), why it cannot be a model.
      type: list
      elements: dict
    custom_nodes:
      description: The node packs of the release by name, each with its commit and the seconds that its import took.
      type: dict
    custom_nodes_problems:
      description: Packs that could not be imported, and node types that they promise and do not offer.
      type: list
      elements: str
    workflows:
      description: What ComfyUI would refuse in each workflow that was placed and that nobody has changed, by its name.
      type: dict
    saved_workflows:
      description: How many workflows ComfyUI's page lists, or nothing where it does not answer.
      type: int
    workflows_notes:
      description:
        - Of each workflow of a later release that was placed, what the release that runs lacks. They are warnings, too.
      type: list
      elements: str
    services:
      description: Of each service that was asked, why it does not answer, or an empty string.
      type: dict
    api_error:
      description: Why ComfyUI does not answer, or an empty string.
      type: str
problems:
  description: What is wrong, with the fix. Empty for a healthy worker.
  returned: always
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.report import problems, worker_report


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "units": {"type": "list", "elements": "str", "required": True},
            "workers": {"type": "dict", "required": True},
            "services": {"type": "dict", "default": {}},
            "data": {"type": "path"},
            "allow_remote": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    data = Path(params["data"]) if params["data"] else None
    report = worker_report(Path(params["root"]), params["units"], params["workers"], params["services"], data)
    for note in report["workflows_notes"]:
        module.warn(note)
    module.exit_json(changed=False, report=report, problems=problems(report, params["allow_remote"]))


if __name__ == "__main__":
    main()
