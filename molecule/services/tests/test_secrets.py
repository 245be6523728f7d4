"""Where the services' secrets are, and where they are not: on the host, and in what Ansible has shown at -vvv."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from testinfra.host import Host

# By unit: its file, and which of the entries in it are secret.
SECRETS = {
    "comfyui": ("comfyui", ["PACK_KEY"]),
    "comfyui-api": ("comfyui-api", ["AWS_SECRET_ACCESS_KEY", "WEBHOOK_SECRET"]),
    "comfyui-handler": ("handler", ["TEST_TOKEN"]),
    "jupyterlab": ("jupyterlab", ["JUPYTER_TOKEN"]),
}
FILES = {f"/etc/wanmetal/{file}.env" for file, _ in SECRETS.values()}
# Runs on the host, since the words of a command of ours are in an argument list and in sudo's log.
HOLDERS = """
import json, pathlib, re
found, secrets, own = [], {}, pathlib.Path("/proc/self").resolve().name
for unit, (file, names) in json.loads(%r).items():
    text = pathlib.Path(f"/etc/wanmetal/{file}.env").read_text()
    secrets |= {re.search(f'^{name}="?(.*?)"?$', text, re.M)[1]: unit for name in names}
patterns = pathlib.Path("/srv/services/patterns")
patterns.touch(0o600)
patterns.write_text("".join(f"{secret}\\n" for secret in secrets))
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        group, *texts = ((process / name).read_text(errors="replace") for name in ("cgroup", "environ", "cmdline"))
    except OSError:
        continue
    for place, text in zip(("environment", "arguments"), texts):
        for secret, unit in secrets.items():
            if secret in text and process.name != own:
                found.append([unit, place, f"/{unit}.service" in group])
print(json.dumps(found))
"""
PATTERNS = "grep --file=/srv/services/patterns --fixed-strings"


@pytest.fixture(scope="module")
def holders(host: Host) -> list[tuple[str, str, bool]]:
    """Whose secret it is, where a process has it, and whether that is a process of the service."""
    host.check_output(f"cat > /srv/services/holders <<'END'\n{HOLDERS % json.dumps(SECRETS)}\nEND")
    return [tuple(holder) for holder in json.loads(host.check_output("python3 /srv/services/holders"))]


def test_ansible_shows_none(host: Host) -> None:
    """In a check with diff, a deploy and a second deploy."""
    shown = (Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ansible.log").read_text(encoding="utf-8")
    assert shown.count("Run comfyui-handler.service]") >= 3
    assert "ESTABLISH SSH CONNECTION" in shown, "that is how -vvv looks"
    token = host.check_output("sed -n s/^JUPYTER_TOKEN=//p /etc/wanmetal/jupyterlab.env")
    secrets = ("comfyui-s3cret", "handler-s3cret", "services-s3cret-bucket", "c2VydmljZXMtczNjcmV0LXdlYmhvb2s=", token)
    assert [secret for secret in secrets if not secret or secret in shown] == []


def test_each_is_in_the_environment_of_its_service_alone(holders: list[tuple[str, str, bool]]) -> None:
    assert set(holders) == {(unit, "environment", True) for unit in SECRETS}


@pytest.mark.usefixtures("holders")
def test_on_disk_they_are_read_by_root_alone(host: Host) -> None:
    """JupyterLab keeps its own token, for those who open it here, in files of its own."""
    root = host.check_output("systemctl show comfyui --property=WorkingDirectory --value").partition("/current")[0]
    left_out = " ".join(f"--exclude-dir={name}" for name in ("environments", "releases", "python", "tools"))
    command = f"{PATTERNS} --files-with-matches --recursive --binary-files=text {left_out}"
    found = host.run(f"{command} /etc /home /root /run /tmp /var {root} 2> /dev/null").stdout.split()
    assert set(found) >= FILES
    wrong = "'(' -perm /077 -o -not -user root -not -user wanmetal-jupyter ')'"
    assert host.check_output(f"find {' '.join(found)} {wrong} -printf '%M %u %p\\n'") == ""


@pytest.mark.usefixtures("holders")
@pytest.mark.parametrize("command", ["journalctl --output=cat", "systemctl show '*'", "systemctl cat '*'"])
def test_systemd_shows_none(host: Host, command: str) -> None:
    assert int(host.check_output(f"{command} --no-pager | wc -l")) > 50
    assert host.run(f"{command} --no-pager | {PATTERNS} --count").stdout.strip() == "0"
