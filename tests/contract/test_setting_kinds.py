"""A setting that nobody has named in a rule has the rules of its kind: here are some that no role has."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import settings
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import Problem

TEXT: dict[str, Any] = {"type": "str", "default": ""}
NO_HOSTS = ("255.255.255.255", "240.0.0.1", "0.0.0.1", "fe80::1", "::ffff:10.0.0.1")
NETWORKS: dict[str, Any] = {"type": "list", "elements": "str", "default": []}
SECRET: dict[str, Any] = {"type": "str", "default": "", "no_log": True}

# By name: the spec, values that are in order, and values that are not.
KINDS: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "demo_user": (
        {"type": "str", "default": "demo"},
        ["demo", "wanmetal-demo"],
        ["root", "ubuntu", "nobody", "systemd-network", "_apt", "Demo", "a b", "x\n", "", "0", "x" * 32, "demo-other"],
    ),
    "demo_group": ({"type": "str", "default": "demo"}, ["demo"], ["sudo", "docker", "a:b", "x\r", "shadow"]),
    "demo_dir": (
        {"type": "path", "default": "/srv/demo"},
        ["/srv/demo", "/home/me/demo", "/usr/local/share/demo", "/data"],
        [
            "/home/me",
            "/etc/ssh",
            "/etc",
            "/root/x",
            "/usr/lib/x",
            "/srv/../etc",
            "relative",
            "/tmp/x",  # noqa: S108
            "/a b",
            "/srv/other",
        ],
    ),
    "demo_root": ({"type": "str", "default": "/srv/demo"}, ["/opt/demo"], ["/opt", "/boot/x", "/opt/demo/"]),
    "demo_place": ({"type": "path", "default": "/srv/x"}, ["/srv/a b"], ["x", "/a/../b", "/proc/1", "/", "/a\x85b"]),
    "demo_paths": (
        {"type": "list", "elements": "path", "default": []},
        [[], ["/srv/x"]],
        [["/srv/x", "../x"], ["/run/x"], ["~/x"]],
    ),
    "demo_port": ({"type": "int", "default": 9000}, [9000, 1024, 65535], [80, 0, -1, 65536, 9999]),
    "demo_url": (
        TEXT,
        ["", "https://example.com", "http://[::1]:80/x?y=z"],
        [
            "example.com",
            "ftp://x",
            "https://me:pw@x",
            "https://me@x",
            "https://x/ y",
            "https://exämple.com",
            "https://x\n",
        ],
    ),
    "demo_endpoint": (TEXT, ["https://s3.example.com"], ["s3.example.com", "https://x/?api_key=1"]),
    "demo_token": (SECRET, ["", "hf_Abc-1."], ["hf\n", "hf\r", " hf", "h f", "hé", "\ufeffhf", "h\x00"]),
    "demo_tokens": ({"type": "dict", "default": {}, "no_log": True}, [{"a.b": "x"}], [{"a.b": "x\n"}, {"a\n": "x"}]),
    "demo_password": (SECRET, ["a$b\\c'd\""], ["a\tb", "a\u2028"]),
    "demo_ip_deny": (
        NETWORKS,
        [[], ["link-local", "10.0.0.0/8", "fd00::/8", "127.0.1.1"]],
        [
            ["any"],
            ["0.0.0.0/0"],
            ["::/0"],
            ["127.0.0.1"],
            ["0.0.0.0/1"],
            ["::1"],
            ["192.0.2.0/24"],
            ["10.0.0.1/8"],
            ["x"],
        ],
    ),
    "demo_ip_allow": (
        NETWORKS,
        [["any"], ["localhost", "10.0.0.0/8"]],
        [["10.0.0.0/255.0.0.0"], ["fe80::1%eth0"], [" 10.0.0.1"]],
    ),
    "demo_allow": (NETWORKS, [["10.0.0.0/8", "::1"]], [["any"], ["localhost"], ["10.0.0.0/08"], ["gpu1"]]),
    "demo_listen": (
        TEXT,
        ["127.0.0.1", "::1"],
        ["", "localhost", "224.0.0.1", "127.0.0.1:80", "fe80::1%eth0", "fe80::1"],
    ),
    "demo_address": (TEXT, ["", "10.0.0.1"], ["gpu1", "0.0.0.0", "::", "ff02::1", *NO_HOSTS]),  # noqa: S104
    "demo_calendar": (
        TEXT,
        ["", "daily", "Sun 04:00", "Mon..Fri *-*-* 8..18:00,30 UTC", "*-*~01", "*:0/15", "04:00 Europe/Berlin"],
        [
            "now",
            "Foo 04:00",
            "25:00",
            "04:60",
            "*-13-01",
            "daily 04:00",
            "Sun..Mon",
            "04:00 Mars/Base",
            "4am",
            "*:0/0",
            " daily",
        ],
    ),
    "demo_schedule": (TEXT, ["weekly"], ["every week", "*/2:00", "daily\r"]),
    "demo_memory_max": (
        TEXT,
        ["infinity", "4G", "90%", "64M"],
        ["4 GB", "0", "1", "32", "63M", "101%", "-1", "99999999T", "4g"],
    ),
    "demo_sha256": (TEXT, ["", "a" * 64], ["a" * 63, "A" * 64, "g" * 64]),
    "demo_environment": (
        {"type": "dict", "default": {}},
        [{}, {"A": "x", "B": 1, "URL": "https://example.com/x?y=1"}],
        [
            {"2A": "x"},
            {"A B": "x"},
            {"A": True},
            {"A": ["x"]},
            {"A": "x\ny"},
            {"A": "x\ry"},
            {"A": "x\x85y"},
            {"A": "x\x00"},
            {"A": "x\u202e"},
            {"HTTP_PROXY": "http://me:pw@proxy"},
            {"HTTP_PROXY": "me:pw@proxy:3128"},
        ],
    ),
    "demo_mb": ({"type": "int", "default": 1}, [1, 1000], [0, -1, 10**9]),
    "demo_gb": ({"type": "int", "default": 1}, [1], [0]),
    "demo_hours": ({"type": "int", "default": 1}, [24], [0, 10**6]),
    "demo_timeout": ({"type": "int", "default": 1}, [60], [0, -5, 10**9]),
    "demo_number": ({"type": "int", "default": 1}, [0, 7], [-1, 2**31]),
    "demo_ratio": ({"type": "float", "default": 1}, [0.5], [float("nan"), float("inf"), -0.1]),
    "demo_words": (
        TEXT,
        ["any text", "git@example.com:x", "ssh://git@example.com/x"],
        [
            "two\nlines",
            "x\x1b[0m",
            "x\x7f",
            "x\u2029",
            "https://me:pw@x/",
            "see https://TOKEN@x/",
            "http://x/?access_token=1",
        ],
    ),
    "demo_list": (
        {"type": "list", "elements": "dict", "default": [], "options": {"a": {"type": "raw"}}},
        [[{"a": {"b": ["x"]}}]],
        [[{"a": {"b": ["x\r"]}}], [{"a": {"b\n": 1}}], [{"a": "https://x/?sig=1"}]],
    ),
}
OTHERS = {
    "other_user": "demo-other",
    "other_dir": "/srv/other",
    "other_port": 9999,
    "other_listen": "192.0.2.7",
}
OTHER_SPECS: dict[str, dict[str, Any]] = {
    "other_user": {"type": "str", "default": "demo-other"},
    "other_dir": {"type": "path", "default": "/srv/other"},
    "other_port": {"type": "int", "default": 9999},
    "other_listen": {"type": "str", "default": "192.0.2.7"},
}


def problems(name: str, value: object) -> list[Problem]:
    specs = {name: KINDS[name][0], **OTHER_SPECS}
    return settings.check(
        {name: value, **OTHERS}, [], settings.Specs(specs, frozenset(specs), ("demo_",)), lambda _: None
    )


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (_, good, _) in KINDS.items() for value in good])
def test_what_is_in_order_is_taken(name: str, value: object) -> None:
    assert problems(name, value) == []


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (_, _, bad) in KINDS.items() for value in bad])
def test_what_would_harm_a_host_is_refused_whatever_the_setting_is_called(name: str, value: object) -> None:
    [problem] = problems(name, value)
    assert problem.what == name
    assert all((problem.found, problem.needed, problem.fix))
    shown = problem.found + problem.fix
    assert "{" not in problem.fix
    assert not any(secret in shown for secret in ("pw", "TOKEN", "hf_"))
    assert shown.isprintable()
