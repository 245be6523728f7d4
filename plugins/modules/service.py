"""Module ``wanmetal.comfyui.service``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service
short_description: Switch a service to new files and ask it, or put the old ones back
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Compares the unit of a service and its other files with the wanted ones. Where they are the same, and it runs and is
    enabled, nothing is done.
  - Otherwise it installs them, restarts the service and asks it. Where it does not start, does not stay up, or does not
    answer, the files that were there before come back, the service is restarted with them, and the task fails with the
    reason and the last lines of the journal.
  - A run that was cut off is finished by the next one.
options:
  root:
    description: Folder that gets the record of a switch that is under way.
    type: path
    required: true
  unit:
    description: The service. Empty removes O(remove) alone.
    type: str
    required: true
  state:
    description: V(present) runs the service, V(absent) removes it.
    type: str
    choices: [present, absent]
    default: present
  config:
    description: The files of the service, its unit among them. They are shown in diffs.
    type: list
    elements: dict
    default: []
    suboptions:
      dest:
        description: Where it belongs. From those in C(/etc/tmpfiles.d), folders are made.
        type: path
        required: true
      content:
        description: What is in it.
        type: str
        default: ""
      owner:
        description: Its owner.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
      mode:
        description: Its mode, in octal.
        type: str
        default: "0644"
      secret:
        description: It is never shown. What is in it stands in O(secret_contents).
        type: bool
        default: false
  secret_contents:
    description: Contents of the files in O(config) that are O(config[].secret), by O(config[].dest).
    type: dict
    default: {}
  answers:
    description: Addresses that have to answer with success. Without any, the service has to stay up for 5 seconds.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description: The address, on this host.
        type: str
        required: true
      header:
        description: Name of a header that is sent along, with a secret that the host has.
        type: str
        default: ""
      prefix:
        description: What stands before the secret in the header.
        type: str
        default: ""
      secret_file:
        description: File on the host, of lines C(NAME=value), that has the secret.
        type: path
      secret:
        description: The name of its line.
        type: str
        default: ""
  timeout:
    description: Seconds, from its start on, within which the service has to answer.
    type: int
    default: 60
  remove:
    description: Paths to remove with the service, in which C(*), C(?) and C([]) stand for others.
    type: list
    elements: str
    default: []
  user:
    description: User to remove with the service. One that no role has made, or that another unit runs as, stays.
    type: str
    default: ""
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: Shows the files before and after. Secret ones are left out.
    support: full
  platform:
    platforms: linux
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
"""

EXAMPLES = r"""
- name: Run a service
  wanmetal.comfyui.service:
    root: /opt/wanmetal
    unit: gallery.service
    config:
      - dest: /etc/systemd/system/gallery.service
        content: "{{ lookup('ansible.builtin.template', 'gallery.service.j2') }}"
    answers:
      - url: http://127.0.0.1:8500/health

- name: Remove it
  wanmetal.comfyui.service:
    root: /opt/wanmetal
    unit: gallery.service
    state: absent
    remove: ["/opt/wanmetal/environments/gallery-*"]
    user: wanmetal-gallery
"""

RETURN = r"""
reasons:
  description: Why the host was not as wanted.
  returned: success
  type: list
  elements: str
restarted:
  description: Whether the service was started or restarted.
  returned: success
  type: bool
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.service import Outcome, Service, remove
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.config_files import OPTIONS, config_files
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.switch import (
    Host,
    SwitchError,
    switch_lock,
)

LOCK_WAIT_S = 900.0


def _run(params: dict[str, Any], host: Host, check: bool) -> Outcome:
    if params["state"] == "absent":
        return remove(host, params["remove"], params["user"], check)
    return Service(host, config_files(params), params["answers"], params["timeout"]).run(check)


def main() -> None:
    """Run as a module."""
    answer = {
        "url": {"type": "str", "required": True},
        "header": {"type": "str", "default": ""},
        "prefix": {"type": "str", "default": ""},
        "secret_file": {"type": "path", "no_log": False},
        "secret": {"type": "str", "default": "", "no_log": False},
    }
    os.umask(0o022)  # whatever the host has: services read what is made here
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "unit": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            **OPTIONS,
            "answers": {"type": "list", "elements": "dict", "default": [], "options": answer},
            "timeout": {"type": "int", "default": 60},
            "remove": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    host = Host(root, root, module.params["unit"])
    try:
        if module.check_mode or not root.is_dir():
            outcome = _run(module.params, host, module.check_mode)
        else:
            with switch_lock(root, LOCK_WAIT_S):
                outcome = _run(module.params, host, False)
    except (SwitchError, OSError) as error:
        module.fail_json(msg=str(error))
    shown = {"diff": outcome.diff} if outcome.diff and module._diff else {}
    module.exit_json(changed=outcome.changed, reasons=outcome.reasons, restarted=outcome.restarted, **shown)


if __name__ == "__main__":
    main()
