"""JupyterLab on a host: who may use it, what it can do, and what it does not tell."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host

UNIT = "jupyterlab"
URL = "http://127.0.0.1:8888"
HOME = "/var/lib/wanmetal-jupyter"


def show(host: Host, name: str) -> str:
    return str(host.check_output(f"systemctl show {UNIT} --property={name} --value"))


def token(host: Host) -> str:
    return str(host.check_output("sed -n s/^JUPYTER_TOKEN=//p /etc/wanmetal/jupyterlab.env"))


def genuine(host: Host) -> str:
    """A header with the token, in a file: commands with the token itself would leave it in the host's journal."""
    host.run(
        "umask 077 && sed -n 's/^JUPYTER_TOKEN=/Authorization: token /p' /etc/wanmetal/jupyterlab.env > /srv/token"
    )
    return "@/srv/token"


def status(host: Host, path: str, *headers: str, data: str = "") -> int:
    """Of a GET, or of a POST where there are data."""
    more = "".join(f" --header '{header}'" for header in headers)
    asked = "curl --silent --max-time 30 --output /dev/null --write-out '%{http_code}'"
    posted = f"--data '{data}' " if data else ""
    return int(host.check_output(f"{asked}{more} {posted}{URL}{path}"))


def as_jupyter(host: Host, command: str) -> str:
    """Run a command as the service runs its kernels."""
    environment = host.file(f"/proc/{show(host, 'MainPID')}/environ").content_string.split("\0")
    given = " ".join(
        f"'{entry}'" for entry in environment if entry.startswith(("PATH=", "HOME=", "JUPYTER_PATH=", "WANMETAL_"))
    )
    return str(host.check_output(f"cd {HOME} && runuser --user wanmetal-jupyter -- env {given} {command}"))


def test_only_the_token_opens_it(host: Host) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", token(host))
    assert status(host, "/api/contents") == 403
    assert status(host, "/api/contents?token=") == 403
    assert status(host, "/api/contents", f"Authorization: token {'0' * 64}") == 403
    assert status(host, "/api/contents", genuine(host)) == 200


def test_other_hosts_and_origins_are_refused(host: Host) -> None:
    assert status(host, "/api/contents", genuine(host), "Host: attacker.example") == 403
    # Who has the token is let in from anywhere; a browser that is logged in does not send it by itself.
    assert (
        status(host, "/api/kernels", "Origin: http://attacker.example", "Content-Type: application/json", data="{}")
        == 404
    )
    assert (
        status(host, "/api/kernels", "Origin: http://127.0.0.1:8888", "Content-Type: application/json", data="{}")
        == 403
    )


def test_the_token_is_root_s_alone(host: Host) -> None:
    file = host.file("/etc/wanmetal/jupyterlab.env")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)


def test_the_token_stays(host: Host) -> None:
    before = token(host)
    host.check_output(f"systemctl restart {UNIT}")
    assert token(host) == before


def test_the_first_notebook_runs(host: Host) -> None:
    """It renders through the API, and its output holds the video."""
    as_jupyter(host, "jupyter execute --output=done.ipynb start.ipynb")
    done = host.file(f"{HOME}/done.ipynb").content_string
    assert "data:video/mp4;base64," in done
    host.check_output(f"rm {HOME}/done.ipynb")


def test_the_worker_s_packages_are_there_and_cannot_be_changed(host: Host) -> None:
    kernel = host.check_output("systemctl cat jupyterlab | grep -o 'JUPYTER_PATH=[^ ]*' | cut -d= -f2")
    kernel += "/kernels/worker/kernel.json"
    code = (
        "import json, sys; line = [word for word in json.load(open(sys.argv[1]))['argv'] if 'exec_lines' in word][0]; "
        "exec(line.partition('=')[2]); import torch, folder_paths; print(torch.__file__)"
    )
    place = as_jupyter(host, f'python -c "{code}" {kernel}')
    assert "/site-packages/torch/__init__.py" in place
    assert host.run(f"runuser --user wanmetal-jupyter -- touch {place}").rc != 0


def test_the_unit(host: Host) -> None:
    shown = set(host.check_output(f"systemctl show {UNIT}").splitlines())
    assert {
        *("User=wanmetal-jupyter", "NoNewPrivileges=yes", "ProtectSystem=strict"),
        *("UnitFileState=enabled", "DevicePolicy=closed"),
    } <= shown
    assert "169.254.0.0/16" in show(host, "IPAddressDeny")
    sockets = re.findall(r"LISTEN +\S+ +\S+ +(\S+):8888 ", host.check_output("ss -Hltn"))
    assert sockets == ["127.0.0.1"]


@pytest.mark.parametrize("path", ["/etc/wanmetal", "/var/lib/wanmetal/output", "/var/lib/wanmetal/user"])
def test_it_does_not_reach_the_services_data(host: Host, path: str) -> None:
    assert host.run(f"runuser --user wanmetal-jupyter -- ls {path}").rc != 0
