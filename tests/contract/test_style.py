from __future__ import annotations

import re

import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house

# Packages come from whatever index a machine is set up for, so no file names one. Written apart, or this file would.
INDEXES = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb", "debian", "org"),
        ("ftp", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("security", "ubuntu", "com"),
        ("pytorch", "org/whl"),
        ("pypi", "nvidia", "com"),
    ]
]
SECRETS = re.compile(
    "|".join(
        [
            r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
            r"\bhf_[A-Za-z0-9]{30,}",
            r"\bgh[pousr]_[A-Za-z0-9]{30,}",
            r"\bgithub_pat_[A-Za-z0-9_]{30,}",
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
            r"\brpa_[A-Z0-9]{30,}",
            r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
            r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.",
        ]
    )
)
HOMES = re.compile(r"(?<![\w.<{}~*-])/(?:home|Users)/(?!me/|ops/|ubuntu/)[a-z][a-z0-9_-]+/")
LARGEST = 1_000_000


def text_of(name: str) -> str:
    return (house.ROOT / name).read_bytes().decode(errors="replace")


NO_TEXTS = (".jpg", ".mp4", ".png")
TEXTS = {name: text_of(name) for name in house.tracked() if not name.endswith(NO_TEXTS)}


def wrong(text: str) -> list[str]:
    """What must not be in a file."""
    found = [host for host in INDEXES if host in text.lower()]
    found += [f"{match[0][:12]}..., a secret" for match in SECRETS.finditer(text)]
    return found + [f"{match[0]}, somebody's home" for match in HOMES.finditer(text)]


def test_there_are_files() -> None:
    assert len(TEXTS) > 100


def test_nothing_that_must_not_be_in_a_file() -> None:
    assert {name: found for name, text in TEXTS.items() if (found := wrong(text))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "see https://" + INDEXES[0].upper() + "/simple",
        "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
        "token: hf_" + "a1B2" * 9,
        "id=AKIA" + "ABCD1234" * 2,
        "/home" + "/jane/x",
    ],
)
def test_it_is_seen(text: str) -> None:
    assert len(wrong(text)) == 1


@pytest.mark.parametrize("text", ["token: hf_...", "/home/", "match('/(home|root)/')", "{{ x }}/home/sub/x", "AKIA"])
def test_what_is_harmless_is_not_blamed(text: str) -> None:
    assert wrong(text) == []


def test_files_are_small_and_tidy() -> None:
    for name, text in TEXTS.items():
        assert len(text) < LARGEST, f"{name} is large"
        assert "\r" not in text, f"{name} has line ends of another system"
        assert not text or text.endswith("\n"), f"{name} does not end with a line end"
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"{name} has blanks at an end of a line"


def test_only_programs_may_be_run() -> None:
    for name, text in TEXTS.items():
        if (house.ROOT / name).stat().st_mode & 0o111:
            assert text.startswith("#!"), f"{name}: chmod -x, or let it say by what it is run"
            assert not name.startswith("plugins/"), f"{name}: chmod -x, since Ansible copies it before it runs"
