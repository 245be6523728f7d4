"""What Ansible has shown of the services' secrets at -vvv, in a check with diff, a deploy and a second deploy."""

from __future__ import annotations

import os
from pathlib import Path

from testinfra.host import Host

SECRETS = ("handler-s3cret", "services-s3cret-bucket", "c2VydmljZXMtczNjcmV0LXdlYmhvb2s=")


def test_ansible_shows_none(host: Host) -> None:
    shown = (Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ansible.log").read_text(encoding="utf-8")
    assert shown.count("TASK [wanmetal.comfyui.handler : Write its secrets]") >= 3
    assert "ESTABLISH SSH CONNECTION" in shown, "that is how -vvv looks"
    token = host.check_output("sed -n s/^JUPYTER_TOKEN=//p /etc/wanmetal/jupyterlab.env")
    assert [secret for secret in (*SECRETS, token) if not secret or secret in shown] == []
