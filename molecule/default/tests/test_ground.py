"""The ground that the other roles stand on."""

from __future__ import annotations

from typing import Any

import pytest


def root(host: Any) -> str:
    return f"/srv/wanmetal/hosts/{host.check_output('hostname')}"


@pytest.mark.parametrize(
    ("path", "owner", "mode"),
    [
        ("{root}/releases", "root", 0o755),
        ("/etc/wanmetal", "root", 0o750),
        ("/var/lib/wanmetal", "root", 0o750),
        ("/var/lib/wanmetal/models", "root", 0o750),
        ("/var/lib/wanmetal/output", "root", 0o1770),
    ],
)
def test_folder(host: Any, path: str, owner: str, mode: int) -> None:
    folder = host.file(path.format(root=root(host)))
    assert folder.is_directory
    assert (folder.user, folder.mode) == (owner, mode)


def test_user_is_a_system_user_without_a_shell(host: Any) -> None:
    user = host.user("wanmetal")
    assert user.shell == "/usr/sbin/nologin"
    assert user.uid < 1000
    assert user.groups == ["wanmetal"]
    assert host.check_output("passwd --status wanmetal").split()[1] == "L"


def test_uv_is_the_pinned_one(host: Any) -> None:
    assert host.check_output(f"{root(host)}/bin/uv --version").startswith("uv 0.13.9")


def test_a_mode_that_drifted_is_mended_by_what_the_role_runs(host: Any) -> None:
    host.check_output("chmod 0777 /var/lib/wanmetal/output")
    host.check_output("systemd-tmpfiles --create /etc/tmpfiles.d/wanmetal.conf")
    assert host.file("/var/lib/wanmetal/output").mode == 0o1770
