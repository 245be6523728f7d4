"""However a check ends, it leaves the host as it was."""

from __future__ import annotations

from typing import Any

FOLDERS = "/etc /home /mnt /opt /root /srv /usr /var/cache /var/lib"
# The lab's hosts share a folder. Logging in and sudo leave traces of their own.
APART = ("/srv/wanmetal", "/var/lib/systemd", "/var/lib/sudo", "/home/ops/.ansible")


def test_no_file_is_younger_than_the_start(host: Any) -> None:
    prunes = " -o ".join(f"-path {path}" for path in APART)
    command = f"find {FOLDERS} \\( {prunes} \\) -prune -o -newer /root/before -print"
    assert host.check_output(command).splitlines() == []


def test_nothing_is_built(host: Any) -> None:
    name = host.check_output("hostname")
    assert not host.file(f"/srv/wanmetal/hosts/{name}/releases").exists


def test_no_user_and_no_unit_was_made(host: Any) -> None:
    assert not host.user("wanmetal").exists
    assert not host.file("/etc/systemd/system/comfyui.service").exists


def test_the_program_that_held_the_port_still_does(host: Any) -> None:
    assert host.socket("tcp://127.0.0.1:8199").is_listening
