from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.gpu import gpu_info
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import driver
from ansible_collections.wanmetal.comfyui.tests.unit.gpu_hosts import (
    BROKEN,
    CLOSED,
    FULL,
    HOSTS,
    MISMATCH,
    OPEN,
    SECURE_BOOT,
    Host,
    dpkg,
    make,
    row,
)

MINIMUM = "570.124.06"


def host(kind: str, **changed: Any) -> Host:
    return Host(**{**vars(HOSTS[kind]), **changed})


def plan(folder: Path, found: Host, system: str = "ubuntu-24.04", **settings: Any) -> dict[str, Any]:
    return driver.driver_plan(gpu_info(make(folder, found)), **{"system": system, "minimum": MINIMUM} | settings)


OLD = host("one", loaded=OPEN.format("535.183.01"), installed="535.183.01")
OPEN_580 = ["nvidia-open-580"]
PROPRIETARY_580 = ["cuda-drivers-580"]

# Host, settings, and what is decided: action, kernel modules, packages.
CASES: list[tuple[str, Host, dict[str, Any], tuple[str, str, list[str]]]] = [
    ("a good one stays", HOSTS["one"], {}, ("none", "", [])),
    ("eight good ones", HOSTS["eight"], {}, ("none", "", [])),
    ("a good one of another branch stays", HOSTS["one"], {"branch": "570"}, ("none", "", [])),
    ("a good one in WSL", HOSTS["wsl"], {}, ("none", "", [])),
    ("a good one in a container", HOSTS["container"], {}, ("none", "", [])),
    ("a good one that nobody may touch", HOSTS["one"], {"enabled": False}, ("none", "", [])),
    ("on the CPU", HOSTS["one, without a driver"], {"accelerator": "cpu"}, ("none", "", [])),
    ("none yet", HOSTS["one, without a driver"], {}, ("install", "open", OPEN_580)),
    ("too old", OLD, {}, ("install", "open", OPEN_580)),
    ("too old for the lane", HOSTS["container"], {"minimum": "580.65.06"}, ("refuse", "", [])),
    ("broken", HOSTS["driver broken"], {}, ("install", "open", OPEN_580)),
    ("without headers", HOSTS["no headers"], {}, ("install", "open", OPEN_580)),
    ("nouveau", HOSTS["nouveau"], {}, ("install", "proprietary", PROPRIETARY_580)),
    ("mismatch", HOSTS["mismatch"], {}, ("restart", "open", [])),
    (
        "mismatch with one that is too old",
        host("mismatch", installed="535.1.1"),
        {},
        ("install", "open", OPEN_580),
    ),
    ("no card", HOSTS["no gpu"], {}, ("refuse", "", [])),
    ("a card of a virtual machine", HOSTS["given to a virtual machine"], {}, ("refuse", "", [])),
    ("a container without its GPUs", host("container", query=BROKEN, status=9), {}, ("refuse", "", [])),
    ("nobody may install", HOSTS["one, without a driver"], {"enabled": False}, ("refuse", "", [])),
    ("Kepler", Host(cards={"01": "1180"}), {}, ("refuse", "open", [])),
    ("Volta with a branch that left it", Host(cards={"01": "1db1"}), {"branch": "590"}, ("refuse", "proprietary", [])),
    ("Turing with it", Host(cards={"01": "1eb8"}), {"branch": "590"}, ("install", "open", ["nvidia-open"])),
    ("a branch before the lane", Host(cards={"01": "1eb8"}), {"branch": "550"}, ("refuse", "open", [])),
    ("Blackwell", Host(cards={"01": "2b85"}), {}, ("install", "open", OPEN_580)),
    ("a mix", Host(cards={"01": "2b85", "02": "1db1"}), {}, ("install", "proprietary", PROPRIETARY_580)),
    ("a mix that has its driver", HOSTS["mixed"], {}, ("none", "", [])),
    (
        "proprietary modules that leave a card out",
        host("mixed", cards={"01": "1eb8", "02": "2b85"}),
        {},
        ("install", "open", OPEN_580),
    ),
    ("a later generation", Host(cards={"01": "3f00"}), {}, ("install", "open", OPEN_580)),
    (
        "Debian",
        Host(cards={"01": "2684"}, kernel="6.1.0-37-amd64"),
        {"system": "debian-12"},
        ("install", "open", [*OPEN_580, "nvidia-persistenced"]),
    ),
    (
        "Debian 13, whose repository has no 580",
        Host(cards={"01": "2684"}, kernel="6.12.48+deb13-amd64"),
        {"system": "debian-13"},
        ("install", "open", ["nvidia-open", "nvidia-persistenced"]),
    ),
    (
        "Ubuntu 26.04, the same",
        Host(cards={"01": "2684"}),
        {"system": "ubuntu-26.04"},
        ("install", "open", ["nvidia-open"]),
    ),
    ("an old card there", Host(cards={"01": "1db1"}), {"system": "debian-13"}, ("refuse", "proprietary", [])),
    (
        "Secure Boot on Ubuntu 26.04, whose own packages have it",
        Host(cards={"01": "1db1"}, files=SECURE_BOOT, kernel="7.0.0-12-generic"),
        {"system": "ubuntu-26.04"},
        (
            "install",
            "proprietary",
            [
                "linux-modules-nvidia-580-server-7.0.0-12-generic",
                "linux-modules-nvidia-580-server-generic",
                "nvidia-headless-no-dkms-580-server",
                "nvidia-utils-580-server",
            ],
        ),
    ),
    (
        "Secure Boot on Ubuntu",
        Host(cards={"01": "2684"}, files=SECURE_BOOT),
        {},
        (
            "install",
            "open",
            [
                "linux-modules-nvidia-580-server-open-6.8.0-64-generic",
                "linux-modules-nvidia-580-server-open-generic",
                "nvidia-headless-no-dkms-580-server-open",
                "nvidia-utils-580-server",
            ],
        ),
    ),
    (
        "Secure Boot on Ubuntu, with an old card and a cloud's kernel",
        Host(cards={"01": "1db1"}, files=SECURE_BOOT, kernel="6.5.0-1024-aws"),
        {"system": "ubuntu-22.04"},
        (
            "install",
            "proprietary",
            [
                "linux-modules-nvidia-580-server-6.5.0-1024-aws",
                "linux-modules-nvidia-580-server-aws",
                "nvidia-headless-no-dkms-580-server",
                "nvidia-utils-580-server",
            ],
        ),
    ),
    (
        "Secure Boot, and the vendor's all the same",
        Host(cards={"01": "2684"}, files=SECURE_BOOT),
        {"source": "vendor"},
        ("install", "open", OPEN_580),
    ),
    ("installed and good", HOSTS["one"], {"installed": True}, ("none", "", [])),
    ("installed, with nouveau", HOSTS["nouveau"], {"installed": True}, ("restart", "proprietary", [])),
    (
        "the same after a restart",
        HOSTS["nouveau"],
        {"installed": True, "restarted": True},
        ("refuse", "proprietary", []),
    ),
    ("installed beside another that runs", HOSTS["mismatch"], {"installed": True}, ("restart", "open", [])),
    ("installed, and its key is not enrolled", HOSTS["secure boot"], {"installed": True}, ("refuse", "open", [])),
    ("installed, without headers", HOSTS["no headers"], {"installed": True}, ("refuse", "open", [])),
    ("installed, and dead", HOSTS["driver broken"], {"installed": True}, ("refuse", "open", [])),
]


@pytest.mark.parametrize(
    ("found", "settings", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_is_decided(
    tmp_path: Path, found: Host, settings: dict[str, Any], expected: tuple[str, str, list[str]]
) -> None:
    decided = plan(tmp_path, found, **settings)
    assert (decided["action"], decided["modules"], decided["packages"]) == expected
    assert bool(decided["fix"]) == bool(decided["found"]) == (decided["action"] == "refuse")
    assert bool(decided["why"]) == (decided["action"] != "refuse")


REFUSALS = [
    (HOSTS["no gpu"], {}, "none", "wanmetal_accelerator: cpu"),
    (host("wsl", query=BROKEN, status=9), {}, "WSL, whose driver is Windows' (NVIDIA-SMI has failed", "in Windows"),
    (host("container", query=BROKEN, status=9), {}, "a container, whose driver is its machine's", "on the machine"),
    (host("container", query=""), {}, "there is no nvidia-smi", "wanmetal_accelerator: cpu"),
    (HOSTS["given to a virtual machine"], {}, "vfio-pci", "give the host one back"),
    (Host(cards={"01": "1180"}), {}, "older than Maxwell", "a later card"),
    (HOSTS["secure boot"], {"installed": True}, "Secure Boot is on", "mokutil --import"),
    (HOSTS["no headers"], {"installed": True}, "headers of the running kernel 6.8.0-64-generic", "linux-headers-6.8.0"),
    (host("no headers", headers=True), {"installed": True}, "no module for kernel", "dkms autoinstall"),
    (HOSTS["mismatch"], {"installed": True, "restarted": True}, "was upgraded without a restart", "restart the host"),
    (HOSTS["one, without a driver"], {"enabled": False}, "nvidia_driver_enabled is false", "enabled: true"),
    (Host(cards={"01": "1db1"}), {"branch": "590"}, "nvidia_driver_branch: 590 with NVIDIA GV100", "branch: 580"),
    (Host(cards={"01": "1db1"}), {"system": "debian-13"}, "NVIDIA GV100 [10de:1db1] on debian-13", "Debian 12"),
    (
        Host(cards={"01": "2330"}),
        {"branch": "570", "minimum": "580.65.06"},
        "branch: 570 with a CUDA version",
        "a later one",
    ),
]


@pytest.mark.parametrize(("found", "settings", "problem", "fix"), REFUSALS)
def test_refusals_say_what_to_do(tmp_path: Path, found: Host, settings: dict[str, Any], problem: str, fix: str) -> None:
    decided = plan(tmp_path, found, **settings)
    assert problem in decided["found"]
    assert fix in decided["fix"]
    assert settings.get("minimum", MINIMUM) in decided["needed"]


@pytest.mark.parametrize(
    ("system", "branch", "installed", "notes"),
    [
        ("debian-12", "580", "580", []),
        ("debian-13", "580", "590", ["begins with branch 590, which is installed in place of 580"]),
        ("debian-13", "595", "595", []),
        ("ubuntu-26.04", "580", "595", ["begins with branch 595, which is installed in place of 580"]),
    ],
)
def test_the_first_branch_that_a_system_s_repository_has(
    tmp_path: Path, system: str, branch: str, installed: str, notes: list[str]
) -> None:
    decided = plan(tmp_path, host("one, without a driver"), system=system, branch=branch)
    assert decided["pinning"] == [f"nvidia-driver-pinning-{installed}"]
    assert [note for note in decided["notes"] if any(text in note for text in notes)] == decided["notes"]
    assert len(decided["notes"]) == len(notes)


def test_pinning_and_headers_come_with_the_vendor_s_packages(tmp_path: Path) -> None:
    decided = plan(tmp_path, host("one, without a driver", headers=False))
    assert decided["pinning"] == ["nvidia-driver-pinning-580"]
    assert decided["headers"] == ["linux-headers-6.8.0-64-generic", "linux-headers-generic"]
    signed = plan(tmp_path / "signed", host("one, without a driver", files=SECURE_BOOT))
    assert signed["pinning"] == signed["headers"] == []


@pytest.mark.parametrize(
    ("found", "branch", "notes"),
    [
        (HOSTS["one"], "580", []),
        (HOSTS["one"], "570", ["driver 580.95.05 is not of nvidia_driver_branch: 570"]),
        (HOSTS["mixed"], "580", ["NVIDIA GB20x [10de:2b85] needs open kernel modules"]),
    ],
)
def test_notes(tmp_path: Path, found: Host, branch: str, notes: list[str]) -> None:
    decided = plan(tmp_path, found, branch=branch)
    assert len(decided["notes"]) == len(notes)
    assert all(text.startswith(note) for text, note in zip(decided["notes"], notes, strict=True))


@pytest.mark.parametrize(
    ("system", "kernel", "expected"),
    [
        ("debian-12", "6.1.0-37-amd64", "amd64"),
        ("debian-12", "6.1.0-37-cloud-amd64", "cloud-amd64"),
        ("debian-12", "6.12.9+bpo-amd64", ""),
        ("debian-13", "6.12.48+deb13-amd64", "amd64"),
        ("debian-13", "6.12.48+deb13.1-cloud-amd64", "cloud-amd64"),
        ("debian-12", "6.8.12-4-pve", ""),
        ("ubuntu-22.04", "5.15.0-151-generic", "generic"),
        ("ubuntu-22.04", "6.8.0-64-generic", "generic-hwe-22.04"),
        ("ubuntu-22.04", "6.8.0-1031-azure", "azure"),
        ("ubuntu-24.04", "6.8.0-64-generic", "generic"),
        ("ubuntu-24.04", "6.14.0-27-generic", "generic-hwe-24.04"),
        ("ubuntu-24.04", "6.8.12-custom", ""),
        ("ubuntu-26.04", "7.0.0-12-generic", "generic"),
        ("ubuntu-26.04", "7.2.0-10-generic", "generic-hwe-26.04"),
    ],
)
def test_kernel_flavours(system: str, kernel: str, expected: str) -> None:
    assert driver.kernel_flavour(system, kernel) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [("570.124.06", "570.86.15"), ("580.65.06", "580.9.1"), ("580.65.06", None), ("571", "570.124.06")],
)
def test_versions_are_compared_by_number(one: str, other: str | None) -> None:
    assert driver.version(one) > driver.version(other)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("No package matching 'nvidia-open-570' is available", "no such package: nvidia-open-570."),
        ("E: Unable to locate package cuda-nvcc-12-8", "no such package: cuda-nvcc-12-8."),
        ("E: Unable to correct problems, you have held broken packages.", "on hold"),
        ("E: Held packages were changed and -y was used without --allow-change-held-packages.", "on hold"),
        ("W: GPG error: file:/srv ./ InRelease: NO_PUBKEY A4B469963BF863CC", "does not fit its key"),
        ("Failed to update apt cache: E:Failed to fetch http://x  Connection refused", "does not answer"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend", "apt's lock"),
        ("E: Write error - write (28: No space left on device)", "disk is full"),
        ("E: something new", "apt failed."),
    ],
)
def test_what_apt_means(message: str, found: str) -> None:
    text = driver.apt_fix(message)
    assert found in text.splitlines()[0]
    assert "fix   " in text
    assert message in text


def test_what_the_tables_use_is_used() -> None:
    """The texts that a mismatch and the two kinds of modules are told by."""
    assert "version mismatch" in MISMATCH
    assert "Open" in OPEN
    assert "Open" not in CLOSED
    assert row(0, "01", "x", "8.9", 1).count(",") == 9
    assert "nvidia-dkms-580-open" in dpkg("1", *FULL)
