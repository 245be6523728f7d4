"""Module ``wanmetal.comfyui.release_switch``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_switch
short_description: Switch a host to a release, verify it, or put the old one back
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Compares the release and the settings that a host runs with the wanted ones. Where they are the same, the service
    runs and its API answers, nothing is done.
  - Otherwise it waits for running jobs, keeps on disk what the way back needs, installs the settings, points C(current)
    to the release, restarts the service, waits for its API and renders a graph whose pixels it looks at.
  - Then it compares the node types that ComfyUI offers with those that the packs of the release promise, in its
    C(release.json). One that is missing is reported with what the log says of it.
  - A release that does not pass is rolled back. The release that was verified last is put in its place, with the
    settings that it was verified with, and the task fails with the last lines of the journal.
  - One that was never verified, or whose files are not as they were built, loses its mark, so that the next deploy
    rebuilds it.
  - A run that was cut off is finished by the next one.
options:
  root:
    description: Folder with C(releases), C(current) and C(previous).
    type: path
    required: true
  release:
    description: Id of the release, or V(previous).
    type: str
    required: true
  unit:
    description: The service.
    type: str
    required: true
  config_dir:
    description: Folder that gets the record of the running generation, C(<unit>.generation).
    type: path
    required: true
  config:
    description: The files of settings. They are shown in diffs.
    type: list
    elements: dict
    default: []
    suboptions:
      dest:
        description: Where it belongs.
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
  config_from:
    description: V(given) takes O(config) as given, V(release) those that the release was last verified with.
    type: str
    choices: [given, release]
    default: given
  workers:
    description:
      - What renders, as addresses of APIs on this host, by unit.
      - One worker is the service itself. Several have units of their own, which the service starts and which are part
        of it, such as C(comfyui@0.service).
    type: dict
    required: true
  drain_timeout:
    description: Seconds to wait for jobs before the restart cuts them off.
    type: int
    default: 60
  canary_timeout:
    description: Seconds that the graph which verifies a release may take.
    type: int
    default: 120
  keep:
    description: Releases that stay, the running one included. The oldest others are removed after a switch.
    type: int
    default: 3
attributes:
  check_mode:
    description: Says whether a switch would take place, and why.
    support: full
  diff_mode:
    description: Shows the release and the settings before and after. Secret files are left out.
    support: full
  platform:
    platforms: linux
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
"""

EXAMPLES = r"""
- name: Switch to a release
  wanmetal.comfyui.release_switch:
    root: /opt/wanmetal
    release: 0.3.75-5b3c1f0e9a
    unit: comfyui.service
    config_dir: /etc/wanmetal
    config:
      - dest: /etc/systemd/system/comfyui.service
        content: "{{ lookup('ansible.builtin.template', 'comfyui.service.j2') }}"
    workers:
      comfyui.service: http://127.0.0.1:8188
"""

RETURN = r"""
release:
  description: The release that runs now.
  returned: success
  type: str
  sample: 0.3.75-5b3c1f0e9a
generation:
  description: Hash of the release and its settings.
  returned: success
  type: str
reasons:
  description: Why the host was not as wanted. Empty when nothing was done but to remove old releases.
  returned: success
  type: list
  elements: str
built:
  description: Whether the release is complete on this host. False only in check mode.
  returned: success
  type: bool
restart_needed:
  description: Whether the service had to be restarted, or would have to be.
  returned: success
  type: bool
restarted:
  description: Whether the service was restarted.
  returned: success
  type: bool
verified:
  description: Whether this generation has rendered a graph with the right pixels.
  returned: success
  type: bool
previous:
  description: The release to go back to, or an empty string.
  returned: success
  type: str
outage_s:
  description: Seconds from the stop of the service to the first answer of the new one. Null without a restart.
  returned: success
  type: float
drained_s:
  description: Seconds that were spent waiting for jobs.
  returned: success
  type: float
cut_off:
  description: Jobs that the restart cut off.
  returned: success
  type: int
silent:
  description: Workers that did not answer until the restart cut them off.
  returned: success
  type: int
environments:
  description: Complete Python environments of releases on the host, C(comfyui-<hash>).
  returned: success
  type: list
  elements: str
removed:
  description: Old releases, leftovers of builds that were cut off, and unused environments, removed or to be removed.
  returned: success
  type: list
  elements: str
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.canary import run_canary
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import (
    ComfyUIClient,
    ComfyUIError,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.config_files import OPTIONS, config_files
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.node_types import look_at_packs
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.switch import (
    Health,
    Host,
    Switch,
    SwitchError,
    Worker,
    as_result,
    switch_lock,
)

LOCK_WAIT_S = 900.0


def _refused(found: str, needed: str, fix: str) -> str:
    """Say it as the preflight does."""
    return f"release\n  found   {found}\n  needed  {needed}\n  fix     {fix}"


def _switch(module: AnsibleModule, host: Host) -> dict[str, Any]:
    params = module.params

    def client(worker: Worker) -> ComfyUIClient:
        return ComfyUIClient(worker.url, timeout_s=5)

    def probe(worker: Worker) -> Health:
        try:
            client(worker).system_stats()
        except ComfyUIError as error:
            return Health(False, str(error))
        return Health(True)

    def verify(worker: Worker) -> Health:
        result = run_canary(client(worker), "image", params["canary_timeout"])
        if not result.ok:
            return Health(False, result.reason)
        wrong = look_at_packs(host.release_dir(host.link("current")), client(worker), worker.unit).problems
        return Health(not wrong, "; ".join(wrong))

    def busy(worker: Worker) -> int | None:
        try:
            queue = client(worker).queue()
        except ComfyUIError as error:
            # Where nothing listens there are no jobs. One that is silent may load a model, for minutes.
            return 0 if isinstance(error.__cause__, ConnectionRefusedError) else None
        return len(queue["queue_running"]) + len(queue["queue_pending"])

    switch = Switch(host, probe, verify, busy, params["drain_timeout"])
    config = config_files(params)
    workers = tuple(Worker(unit, url) for unit, url in params["workers"].items())
    release = host.link("previous") if params["release"] == "previous" else params["release"]
    if not host.is_complete(release):
        if module.check_mode and params["config_from"] == "given":
            result = {
                "changed": True,
                "release": release,
                "reasons": ["the release is not built yet"],
                "built": False,
                "restart_needed": True,
                "environments": host.environments(),
            }
            if module._diff:
                result["diff"] = switch.diff(switch.target(release, config, workers))
            return result
        known = ", ".join(sorted(host.built_at()))
        if not known:
            raise SwitchError(_refused("none on the host", "one that a deploy has built", "deploy to the host first"))
        if params["release"] == "previous" and not release:
            raise SwitchError(
                _refused(
                    f"no release that ran before this one; on the host: {known}",
                    "an earlier one to go back to, which each deploy of another version leaves",
                    "nothing, if this one works; else deploy another version, or name another of those on the host",
                )
            )
        raise SwitchError(
            _refused(f"'{release}', which is not on the host", f"one of: {known}", "name one of these, or deploy it")
        )
    if params["config_from"] == "release":
        stored = switch.stored_target(release)
        if stored is None:
            raise SwitchError(
                _refused(
                    f"'{release}', which was never verified on this host",
                    "one that was, whose settings are known",
                    "name another, or deploy it",
                )
            )
        target = stored
    else:
        target = switch.target(release, config, workers)
    outcome = switch.run(target, check=module.check_mode)
    outcome.removed = switch.prune(params["keep"], check=module.check_mode)
    outcome.changed = outcome.changed or bool(outcome.removed)
    result = as_result(outcome) | {
        "release": release,
        "generation": target.generation,
        "built": True,
        "environments": host.environments(),
    }
    if outcome.diff and module._diff:
        result["diff"] = outcome.diff
    return result


def main() -> None:
    """Run as a module."""
    os.umask(0o022)  # whatever the host has: services read what is made here
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "config_dir": {"type": "path", "required": True},
            **OPTIONS,
            "config_from": {"type": "str", "choices": ["given", "release"], "default": "given"},
            "workers": {"type": "dict", "required": True},
            "drain_timeout": {"type": "int", "default": 60},
            "canary_timeout": {"type": "int", "default": 120},
            "keep": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    host = Host(root, Path(module.params["config_dir"]), module.params["unit"])
    try:
        if module.check_mode or not root.exists():  # where nothing was built there is nothing to keep others from
            result = _switch(module, host)
        else:
            with switch_lock(root, LOCK_WAIT_S):
                result = _switch(module, host)
    except (SwitchError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
