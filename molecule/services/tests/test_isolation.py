"""What code in a node pack reaches: each line of docs/security.md that denies something is tried from within the units.

Root tries the same outside of them, since a target that nobody reaches would show nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

PROJECT = Path(__file__).resolve().parents[3]
CLOUD = ("169.254.169.254", "169.254.170.2", "168.63.129.16", "192.0.0.192", "100.100.100.200")
OUTSIDE = {"LAN": "192.0.2.7", "internet": "198.51.100.7", **{f"metadata at {address}": address for address in CLOUD}}
# Another machine: a network namespace behind a cable, which answers at addresses of all kinds, by TCP and by UDP.
MACHINE = f"""
set -eu
cat > /srv/services/echo <<'END'
import socket, sys
here = socket.socket(type=socket.SOCK_DGRAM)
here.bind((sys.argv[1], 53))
while True:
    here.sendto(*here.recvfrom(99))
END
cat > /srv/services/docker <<'END'
import os, socket
here = socket.create_server("/run/docker.sock", family=socket.AF_UNIX)
os.chmod("/run/docker.sock", 0o666)
abstract = socket.create_server("\\0test-abstract", family=socket.AF_UNIX)
while True:
    here.accept()
END
ip netns add outside
ip link add cable type veth peer name far netns outside
ip addr add 192.0.2.1/24 dev cable
ip link set cable up
ip -n outside link set lo up
ip -n outside link set far up
for address in {" ".join(OUTSIDE.values())}; do
  ip -n outside addr add $address/32 dev far
  ip route replace $address/32 dev cable
done
ip -n outside route add 192.0.2.1/32 dev far
start() {{ unit=$1; shift; systemd-run --quiet --unit="$unit" "$@"; }}
for address in {" ".join(OUTSIDE.values())}; do
  start "test-outside-$address" ip netns exec outside python3 /srv/services/echo "$address"
done
start test-outside-http ip netns exec outside python3 -m http.server --bind 0.0.0.0 80
start test-resolver python3 /srv/services/echo 127.0.0.53
start test-docker python3 /srv/services/docker
for n in $(seq 300); do
  curl --silent --max-time 1 --output /dev/null http://198.51.100.7/ && test -S /run/docker.sock && exit
  sleep 0.1
done
exit 1
"""
AWAY = """
systemctl stop 'test-outside-*' test-resolver test-docker
ip link delete cable
ip netns delete outside
rm -f /run/docker.sock /var/lib/wanmetal/models/attack /usr/local/lib/attack "$HOME/attack.py" /etc/wanmetal/attack
"""
SERVICES = {"the API": 8288, "the handler": 8388, "JupyterLab": 8888, "a bucket here": 9000, "SSH": 22}
FILES = {
    **{f"{name}.env": f"/etc/wanmetal/{name}.env" for name in ("comfyui", "comfyui-api", "handler", "jupyterlab")},
    "records of jobs": "/var/lib/wanmetal/handler/jobs.db",
    "notebooks": "/var/lib/wanmetal-jupyter/start.ipynb",
}
NETLINK, PACKET, RAW, NEW_USER = 16, 17, 3, 0x10000000

PID = re.compile(r"\bpid=(\d+)")

Orders = Mapping[str, list[Any]]
NETWORK: Orders = {
    **{f"{name}, TCP": ["connect", address, 80] for name, address in OUTSIDE.items()},
    **{f"{name}, UDP": ["datagram", address, 53] for name, address in OUTSIDE.items()},
    "the resolver": ["datagram", "127.0.0.53", 53],
    **{name: ["connect", "127.0.0.1", port] for name, port in SERVICES.items()},
}
DENIED: Orders = {
    **NETWORK,
    **{f"reading {name}": ["read", path] for name, path in FILES.items()},
    "Docker": ["local", "/run/docker.sock"],
    "systemd": ["local", "/run/systemd/private"],
    "the journal": ["local", "/run/systemd/journal/stdout"],
    "a netlink socket": ["family", NETLINK, RAW, 0],
    "a packet socket": ["family", PACKET, RAW, 0],
    "a raw socket": ["family", 2, RAW, 1],
    "processes of others": ["others", ""],
    "writing models": ["write", "/var/lib/wanmetal/models/attack"],
    "writing programs": ["write", "/usr/local/lib/attack"],
    "replacing inputs of the handler": ["replace", "/var/lib/wanmetal/input/handler"],
    "replacing outputs of the handler": ["replace", "/var/lib/wanmetal/output/handler"],
    "replacing inputs of the API": ["replace", "/var/lib/wanmetal/input/comfyui-api"],
    "writing settings": ["write", "/etc/wanmetal/attack"],
    "a user namespace": ["namespace", NEW_USER],
}
REACHED = ("internet, TCP", "LAN, TCP")
# What each of the other services is denied, after what it reaches, which shows that it is asked at all.
OTHERS: Mapping[str, Orders] = {
    unit: {
        **{name: NETWORK[name] for name in REACHED},
        **{name: order for name, order in NETWORK.items() if "metadata" in name and "TCP" in name},
        **{name: DENIED[name] for name in ("processes of others", "writing programs", "writing settings")},
        **{f"reading {name}": ["read", path] for name, path in FILES.items() if not path.startswith(own)},
    }
    for unit, own in {
        "comfyui-api": "none of them",
        "comfyui-handler": "/var/lib/wanmetal/handler",
        "jupyterlab": "/var/lib/wanmetal-jupyter",
    }.items()
}
# It is run in the folder of ComfyUI.
PACK: Orders = {
    "itself": ["connect", "127.0.0.1", 8188],
    "a socket without a file": ["local", "\0test-abstract"],
    "writing ComfyUI": ["write", "attack.py"],
    **DENIED,
}


def attack(host: Host, orders: Orders, before: str = "") -> dict[str, str]:
    answers: dict[str, str] = json.loads(host.check_output(f"{before} /srv/services/attacker '{json.dumps(orders)}'"))
    return answers


def got(answers: Mapping[str, str]) -> list[str]:
    good = {"answered", "connected", "made", "written", "seen", "replaced"}
    return [name for name, answer in answers.items() if answer in good or answer.endswith(" bytes")]


@pytest.fixture(scope="module")
def outside(host: Host) -> Iterator[None]:
    try:
        host.check_output(f"bash <<'MACHINE'\n{MACHINE}\nMACHINE")
        yield
    finally:
        host.run(AWAY)


@pytest.fixture(scope="module")
def answers(host: Host, outside: None) -> dict[str, dict[str, str]]:  # noqa: ARG001 (fixtures take no marks)
    """Of each unit: what an attacker in it gets. It is a command of the unit itself, so nothing of it is imitated."""
    orders = {"comfyui": PACK, **OTHERS}
    for unit, order in orders.items():
        words = json.dumps(order).replace("\\", "\\\\").replace('"', '\\"')
        line = f'ExecStartPost=/srv/services/attacker "{words}"'
        host.check_output(
            f"mkdir -p /run/systemd/system/{unit}.service.d && "
            f"cat > /run/systemd/system/{unit}.service.d/attack.conf <<'END'\n[Service]\n{line}\nEND"
        )
    begin = host.check_output("date +%s")
    try:
        host.check_output("systemctl daemon-reload && systemctl restart comfyui comfyui-handler jupyterlab")
        return {unit: said(host, unit, begin) for unit in orders}
    finally:
        host.check_output("rm /run/systemd/system/*.service.d/attack.conf && systemctl daemon-reload")


def said(host: Host, unit: str, begin: str) -> dict[str, str]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        lines = host.check_output(f"journalctl --unit={unit} --since=@{begin} --output=cat").splitlines()
        if found := [line for line in lines if line.startswith('{"i')]:
            answers: dict[str, str] = json.loads(found[-1])
            return answers
        time.sleep(0.5)
    raise AssertionError(f"the attacker in {unit} said nothing")


@pytest.mark.usefixtures("outside")
def test_root_reaches_all_of_it(host: Host) -> None:
    answers = attack(host, PACK)
    assert got(answers) == list(PACK), answers


def test_a_node_pack_reaches_itself_alone(answers: dict[str, dict[str, str]]) -> None:
    assert got(answers["comfyui"]) == ["itself", "a socket without a file"]


@pytest.mark.usefixtures("outside")
def test_no_service_has_a_socket_without_a_file(host: Host) -> None:
    pids = {pid for line in host.check_output("ss -Hxlp").splitlines() if " @" in line for pid in PID.findall(line)}
    groups = host.run(f"cat {' '.join(f'/proc/{pid}/cgroup' for pid in sorted(pids))}").stdout
    assert "/test-docker.service" in groups
    assert [unit for unit in ("comfyui", *OTHERS) if f"/{unit}.service" in groups] == []


def test_accounts_of_the_host_need_a_token_for_jupyterlab_alone(host: Host) -> None:
    pages = {"8188/system_stats": 200, "8288/ready": 200, "8388/health": 200, "8888/api/contents": 403}
    asked = "curl --silent --retry 60 --retry-delay 1 --retry-connrefused --output /dev/null --write-out '%{http_code}'"
    as_nobody = f"runuser --user nobody -- {asked}"
    assert {page: int(host.check_output(f"{as_nobody} http://127.0.0.1:{page}")) for page in pages} == pages


@pytest.mark.parametrize("unit", OTHERS)
def test_services_do_not_reach_the_metadata_or_each_other(answers: dict[str, dict[str, str]], unit: str) -> None:
    assert got(answers[unit]) == list(REACHED)


@pytest.mark.usefixtures("outside")
def test_the_user_alone_is_enough(host: Host) -> None:
    """Without the unit's own rules: what outlives them, or never was in them, gets no further."""
    assert got(attack(host, {"itself": PACK["itself"], **NETWORK}, "runuser --user wanmetal --")) == ["itself"]


@pytest.mark.usefixtures("outside")
def test_the_rule_of_the_unit_alone_closes_the_network(host: Host) -> None:
    """For a user that the other rule does not know. What is left is this host."""
    names = ("IPAddressDeny", "IPAddressAllow")
    rules = " ".join(f"-p '{name}={host.check_output(f'systemctl show -P {name} comfyui')}'" for name in names)
    answers = attack(host, NETWORK, f"systemd-run --quiet --wait --pipe --collect -p User=nobody {rules}")
    assert got(answers) == ["the resolver", *SERVICES]


# comfyui_ip_allow, and what it adds to ComfyUI itself. Some clouds have their name server at the metadata's address.
OPENED: Mapping[str, tuple[list[str], list[str]]] = {
    "the network around": (["192.0.2.0/24"], ["LAN, TCP", "LAN, UDP"]),
    "any": (["any"], ["LAN, TCP", "internet, TCP", *(name for name in NETWORK if "UDP" in name), "the resolver"]),
    "one address of loopback": (["127.0.0.1/32"], [*SERVICES]),
    "all of loopback": (["127.0.0.0/8"], ["the resolver", *SERVICES]),
}


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("case", OPENED)
def test_what_is_opened(host: Host, case: str, tmp_path: Path) -> None:
    networks, expected = OPENED[case]
    settings = {
        "comfyui_ip_allow": ["localhost", *networks],
        "comfyui_workers": [{"port": 8188}],
        **{"wanmetal_user": "wanmetal", "wanmetal_group": "wanmetal", "wanmetal_ip_deny": CLOUD},
    }
    text = f"{{{{ lookup('ansible.builtin.template', '{PROJECT}/roles/comfyui/templates/network.nft.j2') }}}}"
    copy = json.dumps({"content": text, "dest": f"{tmp_path}/network.nft"})
    given = ["-m", "ansible.builtin.copy", "-a", copy, "-e", json.dumps(settings)]
    subprocess.run(["ansible", "localhost", *given], check=True, stdin=subprocess.DEVNULL)
    rules = (tmp_path / "network.nft").read_text(encoding="utf-8")
    try:
        host.check_output(f"nft --file - <<'END'\n{rules}\nEND")
        answers = attack(host, {"itself": PACK["itself"], **NETWORK}, "runuser --user wanmetal --")
    finally:
        host.check_output("nft --file /etc/wanmetal/network.nft")
    assert got(answers) == ["itself", *expected]


def test_comfyui_does_not_start_without_its_rules(host: Host) -> None:
    file = "/etc/wanmetal/network.nft"
    begin = host.check_output("date +%s")
    host.check_output(f"cp --preserve {file} {file}.kept && echo nothing > {file}")
    try:
        assert host.run("systemctl restart comfyui").rc != 0
    finally:
        host.check_output(f"mv {file}.kept {file}; systemctl reset-failed comfyui; systemctl restart comfyui")
    told = host.check_output(f"journalctl --unit=comfyui --since=@{begin} --output=cat")
    assert f"the kernel did not take {file}: it needs nf_tables" in told


def test_a_pack_cannot_pose_as_another_service(host: Host) -> None:
    server = "runuser --user wanmetal -- python3 -m http.server --bind 127.0.0.1 8777"
    host.check_output(f"systemd-run --quiet --unit=test-pose {server}")
    try:
        host.check_output("for n in $(seq 100); do ss -Hltn | grep -q :8777 && exit; sleep 0.1; done; exit 1")
        assert host.run("curl --silent --max-time 3 http://127.0.0.1:8777/").rc in (7, 28)
    finally:
        host.check_output("systemctl stop test-pose")


def test_the_rules_outlive_a_firewall_that_is_loaded_anew(host: Host) -> None:
    rules = host.check_output("nft list table inet wanmetal")
    assert "8188" in rules
    for action in ("restart", "reload", "stop"):
        host.check_output(f"systemctl {action} nftables")
        assert host.check_output("nft list table inet wanmetal") == rules
    assert host.check_output("systemctl is-active comfyui") == "active"


def test_systemd_agrees(host: Host) -> None:
    units = host.check_output("cd /etc/systemd/system && ls comfyui*.service jupyterlab.service").split()
    assert {"comfyui.service", "comfyui-api.service", "comfyui-handler.service", "jupyterlab.service"} <= set(units)
    for unit in units:
        verified = host.run(f"systemd-analyze verify /etc/systemd/system/{unit}")
        about = [line for line in (verified.stdout + verified.stderr).splitlines() if unit in line]
        assert (verified.rc, about) == (0, []), verified
        exposure = host.check_output(f"systemd-analyze security --no-pager {unit} | tail -1")
        assert float(exposure.split(": ")[1].split()[0]) < 2, exposure
