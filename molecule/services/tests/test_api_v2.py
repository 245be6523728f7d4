"""The Comfy API v2 on a host: who may use it, and that it has its ComfyUI."""

from __future__ import annotations

import json
import re

from testinfra.host import Host

URL = "http://127.0.0.1:8488/api/v2"
TOKEN_FILE = "/etc/wanmetal/comfyui-api-v2.env"  # noqa: S105


def status(host: Host, path: str, *headers: str) -> int:
    more = "".join(f" --header '{header}'" for header in headers)
    asked = "curl --silent --max-time 30 --output /dev/null --write-out '%{http_code}'"
    return int(host.check_output(f"{asked}{more} {URL}{path}"))


def genuine(host: Host) -> str:
    """A header with the token, in a file: commands with the token itself would leave it in the host's journal."""
    host.run(f"umask 077 && sed -n 's/^COMFYUI_API_V2_TOKEN=/Authorization: Bearer /p' {TOKEN_FILE} > /srv/token-v2")
    return "@/srv/token-v2"


def test_only_the_token_opens_it(host: Host) -> None:
    assert re.fullmatch(r"COMFYUI_API_V2_TOKEN=[0-9a-f]{64}", host.file(TOKEN_FILE).content_string.strip())
    assert host.file(TOKEN_FILE).mode == 0o600
    assert status(host, "/jobs") == 401
    assert status(host, "/jobs", f"Authorization: Bearer {'0' * 64}") == 401
    assert status(host, "/jobs", genuine(host)) == 200
    assert status(host, "/jobs", genuine(host), "Origin: http://attacker.example") == 403
    assert [listening for listening in host.socket.get_listening_sockets() if listening.endswith(":8488")] == [
        "tcp://127.0.0.1:8488"
    ]


def test_the_token_is_in_no_argument_list(host: Host) -> None:
    token = host.file(TOKEN_FILE).content_string.partition("=")[2].strip()
    assert token not in host.run("cat /proc/[0-9]*/cmdline").stdout  # processes end meanwhile


def test_a_job_comes_to_its_end(host: Host) -> None:
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "v2"}},
    }
    host.check_output(f"echo '{json.dumps({'workflow': graph})}' > /srv/job-v2.json")
    posted = f"curl --silent --header {genuine(host)} --header 'Content-Type: application/json'"
    job = json.loads(host.check_output(f"{posted} --data @/srv/job-v2.json {URL}/jobs"))
    asked = f"curl --silent --header @/srv/token-v2 {URL}/jobs/{job['id']}"
    wait = f"for i in $(seq 120); do {asked} | grep -q succeeded && exit; sleep 1; done; {asked}; exit 1"
    assert host.run(wait).rc == 0
