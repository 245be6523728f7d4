from __future__ import annotations

DOCUMENTATION = r"""
module: host_state
short_description: Read what a deploy has to know of a host, in one call
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Reads the operating system, memory, filesystems, listening ports, clock, GPU and installed releases, and asks
    which sources answer. Changes nothing.
  - Processes that hold ports are seen by root only.
options:
  root:
    description: Folder of the releases.
    type: path
    required: true
  paths:
    description: Absolute paths whose filesystems are wanted. They need not exist yet.
    type: list
    elements: path
    default: []
  users:
    description: Names of accounts of which is asked whether a deploy has made them.
    type: list
    elements: str
    default: []
  groups:
    description: Names of groups of which is asked the same.
    type: list
    elements: str
    default: []
  folders:
    description: Absolute paths of folders of which is asked the same.
    type: list
    elements: path
    default: []
  urls:
    description:
      - URLs that are asked, all at once, with the proxies and certificates of the task's environment.
      - C(http), C(https) and C(file) are asked; others count as answered.
    type: list
    elements: str
    default: []
  url_timeout:
    description: Seconds until a URL counts as not answering.
    type: float
    default: 10
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Look at the host
  wanmetal.comfyui.host_state:
    root: /opt/wanmetal
    paths: [/opt/wanmetal, /var/lib/wanmetal]
  become: true
  register: preflight_host
"""

RETURN = r"""
ansible_facts:
  description:
    - C(distribution) and C(distribution_major_version) as M(ansible.builtin.setup) has them, on Debian and Ubuntu.
    - C(gpu_info) as M(wanmetal.comfyui.gpu_info) has it.
  type: dict
  returned: success
os:
  description: C(id), C(version) and C(name) from os-release.
  type: dict
  returned: success
  sample: {id: debian, version: "12", name: Debian GNU/Linux 12 (bookworm)}
architecture:
  description: Machine name of the kernel.
  type: str
  returned: success
  sample: x86_64
container:
  description: Whether the host is a container.
  type: bool
  returned: success
systemd:
  description: C(version), a number, and C(state) as C(systemctl is-system-running) has it. Null without systemd.
  type: dict
  returned: success
  sample: {version: 252, state: running}
memory_mb:
  description: Memory in MiB, of the host or of its container.
  type: int
  returned: success
filesystems:
  description:
    - By path, C(mount), C(device) (a number that paths on one filesystem share), C(free_bytes) for those who are
      not root, C(free_inodes) (null where there is no limit) and C(read_only).
  type: dict
  returned: success
listeners:
  description:
    - Listening TCP sockets with C(port), C(address), C(user), C(pid) (null where unknown), C(command) and C(unit)
      (empty where there is none).
  type: list
  elements: dict
  returned: success
synchronised:
  description: Whether the clock is kept in sync. Null in containers, where that may not be visible.
  type: bool
  returned: success
urls:
  description:
    - By URL, C(ok), C(status) (of HTTP, or null) and C(reason), which is empty or one of V(dns), V(refused), V(tls),
      V(timeout), V(http), V(missing) (a C(file) URL), V(unreachable) and V(not asked).
  type: dict
  returned: success
pythons:
  description: Interpreters on the path, by version.
  type: dict
  returned: success
  sample: {"3.11": /usr/bin/python3.11}
gpu:
  description: What M(wanmetal.comfyui.gpu_info) returns.
  type: dict
  returned: success
uid:
  description: The number of the user that this ran as, 0 for root.
  type: int
  returned: success
strange_units:
  description: Services in C(/etc/systemd/system) that no deploy has made.
  type: list
  elements: str
  returned: success
units:
  description: Services in C(/etc/systemd/system) that a deploy has made.
  type: list
  elements: str
  returned: success
users:
  description: By name, C(uid), C(home), C(shell) and C(ours), whether a deploy has made it. Null where there is none.
  type: dict
  returned: success
groups:
  description: By name, C(gid) and C(ours). Null where there is none.
  type: dict
  returned: success
folders:
  description:
    - By path, C(folder), whether it is one, C(ours), whether a deploy may use it, C(marked), whether one has made it or
      an operator has said so by a file C(.wanmetal), and C(entries), the first names in it. Null where there is none.
  type: dict
  returned: success
releases:
  description: C(installed), ids of complete releases, C(current) and C(previous), ids or empty.
  type: dict
  returned: success
builds:
  description: Paths of the files that mark an environment of a service as complete.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import state as host_state


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "paths": {"type": "list", "elements": "path", "default": []},
            "users": {"type": "list", "elements": "str", "default": []},
            "groups": {"type": "list", "elements": "str", "default": []},
            "folders": {"type": "list", "elements": "path", "default": []},
            "urls": {"type": "list", "elements": "str", "default": []},
            "url_timeout": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    params = module.params
    state = host_state.host_state(params["root"], params["paths"], params["urls"], params["url_timeout"], params)
    facts = {**host_state.distribution_facts(state["os"]), "gpu_info": state["gpu"]}
    module.exit_json(changed=False, ansible_facts=facts, **state)


if __name__ == "__main__":
    main()
