"""Ten kinds of host, each as a small tree of files and programs below a root."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KERNEL = "6.8.0-64-generic"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U22)\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Mar 25 18:22:51 UTC 2025\nGCC version:  gcc 12.2.0\n"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105\n"
BROKEN = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n"
)

# Loaded by a host's Python as it starts: the modules see root, and the GPU of another tree.
SHOW = """\
import importlib.util
import os
import sys
from pathlib import Path

os.getuid = os.geteuid = lambda: 0


class Finder:
    def find_spec(self, name, path, target=None):
        if not name.endswith(".module_utils.host.gpu"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)

        def exec_module(module):
            del spec.loader.exec_module  # the loader is that of other modules, too
            spec.loader.exec_module(module)
            module.gpu_info.__defaults__ = (Path(os.environ["SHOWN_ROOT"]),)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def row(index: int, bus: str, name: str, capability: str, memory: int, mig: str = "[N/A]", ecc: str = "[N/A]") -> str:
    """A line of nvidia-smi's answer."""
    return (
        f"{index}, 00000000:{bus.upper()}:00.0, GPU-0000000{index}-aaaa-bbbb-cccc-000000000000, {name}, {capability}, "
        f"{memory}, 580.95.05, {ecc}, {mig}, Enabled\n"
    )


def dpkg(version: str, *names: str, hold: bool = False) -> str:
    return "".join(
        f"Package: {name}\nStatus: {'hold' if hold else 'install'} ok installed\nArchitecture: amd64\n"
        f"Version: {version}-1\nDescription: x\n\n"
        for name in names
    )


@dataclass(frozen=True)
class Host:
    """What a host shows of itself."""

    cards: Mapping[str, str] = field(default_factory=dict)
    """Device ids by bus."""
    bound: str = ""
    """The kernel's driver of the cards."""
    loaded: str = ""
    modules: Sequence[str] = ("ext4",)
    installed: str = ""
    license: str = "Dual MIT/GPL"
    query: str = ""
    status: int = 0
    listed: str = ""
    versions: str = "CUDA Version        : 13.0\n"
    packages: str = ""
    headers: bool = True
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    kernel: str = KERNEL


SECURE_BOOT = {"sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": b"\x06\x00\x00\x00\x01"}
FULL = ("nvidia-open-580", "nvidia-dkms-580-open", "libnvidia-compute-580")

A100 = "20b0"
HOSTS = {
    "no gpu": Host(),
    "one, without a driver": Host(cards={"01": "2684"}),
    "one": Host(
        cards={"01": "2684"},
        bound="nvidia",
        loaded=OPEN.format("580.95.05"),
        installed="580.95.05",
        query=row(0, "01", "NVIDIA GeForce RTX 4090", "8.9", 24564),
        packages=dpkg("580.95.05", *FULL, hold=True),
    ),
    "eight": Host(
        cards={f"{bus:02x}": "2330" for bus in range(0x18, 0x20)},
        bound="nvidia",
        loaded=OPEN.format("580.95.05"),
        installed="580.95.05",
        query="".join(
            row(n, f"{0x18 + n:02x}", "NVIDIA H100 80GB HBM3", "9.0", 81559, "Disabled", "Enabled") for n in range(8)
        ),
    ),
    "mixed": Host(
        cards={"01": "1db1", "02": "2b85"},
        bound="nvidia",
        loaded=CLOSED.format("580.95.05"),
        installed="580.95.05",
        license="NVIDIA",
        query=row(0, "01", "Tesla V100-SXM2-16GB", "7.0", 16384, ecc="Enabled"),
    ),
    "mig": Host(
        cards={"3b": A100},
        bound="nvidia",
        loaded=OPEN.format("580.95.05"),
        installed="580.95.05",
        query=row(0, "3b", "NVIDIA A100-SXM4-40GB", "8.0", 40960, "Enabled", "Enabled"),
        listed="GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-00000000-aaaa-bbbb-cccc-000000000000)\n"
        "  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)\n"
        "  MIG 1g.5gb      Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)\n",
    ),
    "driver broken": Host(
        cards={"01": "2684"}, installed="580.95.05", query=BROKEN, status=9, packages=dpkg("580.95.05", *FULL)
    ),
    "mismatch": Host(
        cards={"01": "2684"},
        bound="nvidia",
        loaded=OPEN.format("580.95.05"),
        installed="580.105.08",
        query=MISMATCH,
        status=18,
        packages=dpkg("580.105.08", *FULL),
    ),
    "nouveau": Host(cards={"01": "1b38"}, bound="nouveau", modules=("drm", "nouveau")),
    "wsl": Host(
        query=row(0, "01", "NVIDIA GeForce RTX 3080", "8.6", 10240), kernel="5.15.167.4-microsoft-standard-WSL2"
    ),
    "container": Host(
        cards={"18": "2330", "19": "2330"},
        bound="nvidia",
        loaded=OPEN.format("570.133.20"),
        query=row(0, "19", "NVIDIA H100 80GB HBM3", "9.0", 81559, "Disabled", "Enabled"),
        files={"proc/1/environ": "HOME=/\0container=docker\0"},
    ),
    "secure boot": Host(
        cards={"01": "2684"},
        installed="580.95.05",
        query=BROKEN,
        status=9,
        files=SECURE_BOOT,
        packages=dpkg("580.95.05", *FULL),
    ),
    "no headers": Host(cards={"01": "2684"}, query=BROKEN, status=9, packages=dpkg("580.95.05", *FULL), headers=False),
    "given to a virtual machine": Host(cards={"01": "2684"}, bound="vfio-pci"),
}


def make(root: Path, host: Host) -> Path:
    """Write a host's tree."""
    files: dict[str, str | bytes] = {
        "proc/sys/kernel/osrelease": f"{host.kernel}\n",
        "proc/modules": "".join(f"{name} 1 0 - Live 0x0\n" for name in host.modules),
        "var/lib/dpkg/status": host.packages + dpkg("1.17.8", "nvidia-container-toolkit", "coreutils"),
        **host.files,
    }
    if host.loaded:
        files["proc/driver/nvidia/version"] = host.loaded
    for bus, device in host.cards.items():
        card = f"sys/bus/pci/devices/0000:{bus}:00."
        files |= {f"{card}0/class": "0x030200\n", f"{card}0/vendor": "0x10de\n", f"{card}0/device": f"0x{device}\n"}
        files |= {f"{card}1/class": "0x040300\n", f"{card}1/vendor": "0x10de\n", f"{card}1/device": "0x22ba\n"}
    files |= {
        "sys/bus/pci/devices/0000:00:02.0/class": "0x030000\n",
        "sys/bus/pci/devices/0000:00:02.0/vendor": "0x1a03\n",
    }
    if host.query:
        files["usr/bin/nvidia-smi"] = _script(
            {"--query*": host.query, "-L": host.listed, "--version": host.versions}, host.status
        )
    if host.installed:
        files["usr/sbin/modinfo"] = _script(
            {"--field=version": f"{host.installed}\n", "--field=license": f"{host.license}\n"}, 0
        )
    if host.headers:
        files[f"lib/modules/{host.kernel}/build/Makefile"] = ""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if content[:2] == "#!":
            path.chmod(0o755)
    for bus in host.cards if host.bound else ():
        (root / f"sys/bus/pci/devices/0000:{bus}:00.0/driver").symlink_to(f"../../../../bus/pci/drivers/{host.bound}")
    return root


def python_of(folder: Path, root: Path) -> Path:
    """A Python for a host's modules, which see this root, and the GPUs of a tree that ``make`` has written."""
    (folder / "sitecustomize.py").write_text(SHOW)
    python = folder / "python3"
    settings = shlex.join([f"PYTHONPATH={folder}", f"SHOWN_ROOT={root}"])
    python.write_text(f'#!/bin/sh\nexec env {settings} {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return python


def _script(answers: Mapping[str, str], status: int) -> str:
    cases = "".join(f"{pattern}) cat << 'END'\n{text}END\n;;\n" for pattern, text in answers.items())
    return f"#!/bin/sh\ncase $1 in\n{cases}esac\nexit {status}\n"
