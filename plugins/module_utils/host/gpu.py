"""The NVIDIA GPUs of a host and their driver, read from the kernel's files, dpkg's list and nvidia-smi.

It works before any driver is there. Changes nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# -- generations


@dataclass(frozen=True)
class Chip:
    """A row of the table: chips are known by ranges of their PCI device ids."""

    first: int
    last: int
    name: str
    architecture: str
    capability: str


CHIPS = (
    Chip(0x1340, 0x13BF, "GM10x", "maxwell", "5.0"),
    Chip(0x13C0, 0x147F, "GM20x", "maxwell", "5.2"),
    Chip(0x15C0, 0x15FF, "GP100", "pascal", "6.0"),
    Chip(0x1600, 0x167F, "GM20x", "maxwell", "5.2"),
    Chip(0x1740, 0x17BF, "GM10x", "maxwell", "5.0"),
    Chip(0x17C0, 0x17FF, "GM200", "maxwell", "5.2"),
    Chip(0x1B00, 0x1D7F, "GP10x", "pascal", "6.1"),
    Chip(0x1D80, 0x1DFF, "GV100", "volta", "7.0"),
    Chip(0x1E00, 0x1FFF, "TU10x", "turing", "7.5"),
    Chip(0x2080, 0x20FF, "GA100", "ampere", "8.0"),
    Chip(0x2180, 0x21FF, "TU116", "turing", "7.5"),
    Chip(0x2200, 0x22FF, "GA102", "ampere", "8.6"),
    Chip(0x2300, 0x23FF, "GH100", "hopper", "9.0"),
    Chip(0x2400, 0x25FF, "GA10x", "ampere", "8.6"),
    Chip(0x2680, 0x28FF, "AD10x", "ada", "8.9"),
    Chip(0x2900, 0x29FF, "GB100", "blackwell", "10.0"),
    Chip(0x2B80, 0x2DFF, "GB20x", "blackwell", "12.0"),
    Chip(0x2E00, 0x2E7F, "GB20B", "blackwell", "12.1"),
    Chip(0x2F00, 0x2F7F, "GB205", "blackwell", "12.0"),
    Chip(0x3180, 0x31FF, "GB110", "blackwell", "10.3"),
)
_BEFORE_MAXWELL = 0x1340


def chip_of(device: int) -> Chip:
    """What a PCI device id says. Ids of no known range have an unknown architecture."""
    for chip in CHIPS:
        if chip.first <= device <= chip.last:
            return chip
    known = "older" if device < _BEFORE_MAXWELL else "unknown"
    return Chip(device, device, "", known, "")


# -- programs, which a test finds below its own root


Run = Callable[[Sequence[str]], "tuple[int, str]"]
"""Runs a program and gives its exit status and output. 127 where there is none, 124 where it does not end."""

_FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin", "usr/local/bin", "usr/lib/wsl/lib")
_SECONDS = 60


def runner(root: Path) -> Run:
    """Runs programs that lie below ``root``."""

    def run(words: Sequence[str]) -> tuple[int, str]:
        program = next((root / folder / words[0] for folder in _FOLDERS if (root / folder / words[0]).exists()), None)
        if program is None:
            return 127, ""
        try:
            # pylint: disable-next=ansible-bad-function
            done = subprocess.run(
                [str(program), *words[1:]],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return 124 if isinstance(error, subprocess.TimeoutExpired) else 126, str(error)
        return done.returncode, done.stdout

    return run


# -- sysfs


def pci_cards(root: Path) -> list[dict[str, Any]]:
    """NVIDIA's display devices in the order of their addresses."""
    found = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        # 03 is a display; a card has further functions, for sound and USB.
        if not _text(folder / "class").startswith("0x03") or _text(folder / "vendor").strip() != "0x10de":
            continue
        device = int(_text(folder / "device").strip() or "0", 16)
        chip = chip_of(device)
        link = folder / "driver"
        found.append(
            _gpu(
                "pci",
                pci_address=folder.name.lower(),
                device_id=f"{device:04x}",
                name=f"NVIDIA {chip.name or 'GPU'} [10de:{device:04x}]",
                architecture=chip.architecture,
                compute_capability=chip.capability or None,
            )
            | {"kernel_driver": link.readlink().name if link.is_symlink() else ""}
        )
    return found


_FIELDS = (
    *("pci_address", "device_id", "name", "architecture", "compute_capability", "index", "uuid", "vram_mb", "ecc"),
    *("mig", "persistence", "mig_devices"),
)


def _gpu(source: str, **known: Any) -> dict[str, Any]:
    """A GPU of which some things are known, with the source of each."""
    gpu: dict[str, Any] = dict.fromkeys(_FIELDS) | {"mig_devices": [], "kernel_driver": ""} | known
    return gpu | {"sources": {name: source for name in known if known[name] is not None}}


# -- nvidia-smi

_QUERY = (
    *("index", "pci.bus_id", "uuid", "name", "compute_cap", "memory.total", "driver_version", "ecc.mode.current"),
    *("mig.mode.current", "persistence_mode"),
)
_SWITCH = {"Enabled": True, "Disabled": False}
_SLICE = re.compile(r"^\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")


def smi_cards(text: str) -> list[dict[str, Any]]:
    """GPUs from the output of the query above."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) != len(_QUERY) or not words[0].isdigit():
            continue
        index, address, uuid, name, capability, memory, _unused, ecc, mig, persistence = words
        found.append(
            _gpu(
                "nvidia-smi",
                index=int(index),
                pci_address=_sysfs_address(address),
                uuid=uuid,
                name=name,
                compute_capability=capability if re.fullmatch(r"\d+\.\d+", capability) else None,
                vram_mb=int(memory) if memory.isdigit() else None,
                ecc=_SWITCH.get(ecc),
                mig=_SWITCH.get(mig),
                persistence=_SWITCH.get(persistence),
            )
        )
    return found


def _sysfs_address(address: str) -> str:
    """nvidia-smi writes eight digits of a domain, in capitals; sysfs at least four."""
    domain, _unused, rest = address.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def smi_mig_devices(text: str) -> dict[str, list[dict[str, Any]]]:
    """MIG slices by the UUID of their GPU, from ``nvidia-smi -L``."""
    slices: dict[str, list[dict[str, Any]]] = {}
    gpu = ""
    for line in text.splitlines():
        parent = re.match(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)", line)
        gpu = parent[1] if parent else gpu
        entry = _SLICE.match(line)
        if entry:
            size = re.search(r"\.(\d+)gb", entry[1])
            slices.setdefault(gpu, []).append(
                {"uuid": entry[2], "profile": entry[1], "vram_mb": int(size[1]) * 1024 if size else None}
            )
    return slices


def merged(pci: Sequence[dict[str, Any]], smi: Sequence[dict[str, Any]], partial: bool) -> list[dict[str, Any]]:
    """One list of both, in the driver's order.

    What the driver says goes first. With ``partial`` the machine has cards that are not this host's, as in a
    container, and what the driver does not know of is left out.
    """
    by_address = {gpu["pci_address"]: gpu for gpu in pci}
    found = []
    for gpu in smi:
        card = by_address.pop(gpu["pci_address"], _gpu("pci"))
        known = {
            name: value for name, value in gpu.items() if value is not None and name not in {"sources", "mig_devices"}
        }
        known.pop("kernel_driver")
        both = card | known | {"sources": card["sources"] | gpu["sources"]}
        if both["architecture"] in (None, "unknown"):
            both["architecture"] = _by_capability(both["compute_capability"])
            both["sources"]["architecture"] = "nvidia-smi"
        found.append(both)
    return found if partial and found else [*found, *by_address.values()]


def _by_capability(capability: str | None) -> str:
    """For cards that no table knows, and where there is no sysfs to read the id from."""
    number = tuple(int(part) for part in (capability or "0.0").split("."))
    names = {(5,): "maxwell", (6,): "pascal", (7, 0): "volta", (7, 2): "volta", (7, 5): "turing", (8, 9): "ada"}
    names |= {(8,): "ampere", (9,): "hopper", (10,): "blackwell", (11,): "blackwell", (12,): "blackwell"}
    return names.get(number) or names.get(number[:1]) or ("older" if (0,) < number[:1] < (5,) else "unknown")


# -- the driver


def driver_state(root: Path, run: Run, kernel: str) -> dict[str, Any]:
    """The kernel module that is loaded and the one on disk, and whether nvidia-smi works."""
    loaded = re.search(r"NVRM version:\s+(.*?)\s(\d+\.\d+(?:\.\d+)?)\s", _text(root / "proc/driver/nvidia/version"))
    modules = {line.split()[0] for line in _text(root / "proc/modules").splitlines() if line.strip()}
    status, query = run(["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"])
    working = status == 0 and bool(smi_cards(query))
    version = query.splitlines()[0].split(",")[_QUERY.index("driver_version")].strip() if working else None
    cuda = None
    if working:
        # The option is younger than the header of the plain call.
        versions = run(["nvidia-smi", "--version"])
        versions = versions if versions[0] == 0 else run(["nvidia-smi"])
        cuda = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", versions[1])
    module = [
        run(["modinfo", f"--field={name}", f"--set-version={kernel}", "nvidia"]) for name in ("version", "license")
    ]
    installed = module[0][1].strip() if module[0][0] == 0 else ""
    return {
        "loaded": loaded[2] if loaded else version,
        "loaded_modules": ("open" if "Open" in loaded[1] else "proprietary") if loaded else None,
        "installed": installed or None,
        # The open modules alone may be taken for free software.
        "installed_modules": ("open" if "GPL" in module[1][1] else "proprietary") if installed else None,
        "library": next(iter(re.findall(r"NVML library version: (\d+[.\d]*)", query)), None),
        "nouveau": "nouveau" in modules,
        "ready": working,
        "error": "" if working or status == 127 else _shortened(query) or f"nvidia-smi ended with status {status}",
        "cuda": cuda[1] if cuda else None,
        "managed": (root / "etc/apt/apt.conf.d/52wanmetal-nvidia").exists(),
        "query": query if working else "",
    }


def _shortened(text: str) -> str:
    return " ".join(text.split())[:300]


def packages(status: str) -> dict[str, dict[str, Any]]:
    """Installed packages of the driver, from dpkg's list, and whether they are held."""
    found = {}
    for block in status.split("\n\n"):
        name = re.match(r"Package: ((?:lib)?nvidia-\S+|cuda-drivers\S*|linux-(?:modules|objects)-nvidia-\S+)", block)
        state = re.search(r"^Status: (\S+) \S+ installed$", block, re.MULTILINE)
        version = re.search(r"^Version: (\S+)$", block, re.MULTILINE)
        # Tools for containers have versions of their own.
        if name and state and version and "container" not in name[1]:
            found[name[1]] = {"version": version[1], "hold": state[1] == "hold"}
    return found


def kind_of_host(root: Path) -> str:
    """V(wsl), V(container) or V(machine); a virtual machine is a machine."""
    if "microsoft" in _text(root / "proc/sys/kernel/osrelease").lower():
        return "wsl"
    marks = ("run/systemd/container", ".dockerenv", "run/.containerenv")
    if any((root / mark).exists() for mark in marks) or "container=" in _text(root / "proc/1/environ"):
        return "container"
    return "machine"


def secure_boot(root: Path) -> bool | None:
    """Whether the firmware lets the kernel load signed modules alone. Null where there is no such firmware."""
    for file in sorted((root / "sys/firmware/efi/efivars").glob("SecureBoot-*")):
        # Four bytes of attributes come before the value.
        return _bytes(file)[4:5] == b"\x01"
    return None


# -- what is wrong


def diagnose(host: dict[str, Any], gpus: Sequence[dict[str, Any]], driver: dict[str, Any]) -> list[dict[str, str]]:
    """What users meet, each with its fix. Empty where there is no card, or all works."""
    cards = [gpu for gpu in gpus if gpu["kernel_driver"] != "vfio-pci"]
    if not cards or host["kind"] == "container":
        return []
    found = []

    def add(kind: str, what: str, fix: str) -> None:
        found.append({"kind": kind, "found": what, "fix": fix})

    mismatched = driver["loaded"] and driver["installed"] and driver["loaded"] != driver["installed"]
    if mismatched or "version mismatch" in driver["error"]:
        other = driver["installed"] if mismatched else driver["library"] or "another"
        add(
            "mismatch",
            f"the kernel runs driver {driver['loaded'] or 'of another version'}, and {other} is installed: it was "
            "upgraded without a restart",
            "restart the host; nvidia_driver_reboot: true lets a deploy do it",
        )
    if driver["nouveau"]:
        add(
            "nouveau",
            "the module nouveau is loaded, which keeps NVIDIA's own from the cards",
            "restart the host once nouveau is off; nvidia_driver_reboot: true lets a deploy do it",
        )
    built = [name for name in driver["packages"] if "dkms" in name]
    if built and not driver["installed"] and not driver["loaded"]:
        if host["headers"]:
            add(
                "not built",
                f"the driver's packages are installed, and there is no module for kernel {host['kernel']}",
                "run dkms autoinstall on the host; its log is in /var/lib/dkms/nvidia/*/build/make.log",
            )
        else:
            add(
                "headers",
                f"the headers of the running kernel {host['kernel']} are missing, so its module was not built",
                f"apt-get install linux-headers-{host['kernel']}; where there is no such package any longer, upgrade "
                "the kernel and restart the host",
            )
    if driver["installed"] and not driver["loaded"] and not driver["nouveau"] and host["secure_boot"]:
        add(
            "mok",
            "Secure Boot is on, and the module is not loaded: its key is not enrolled in the firmware",
            "mokutil --import /var/lib/dkms/mok.pub (Ubuntu: /var/lib/shim-signed/mok/MOK.der), restart, and confirm "
            "it at the host's console; or switch Secure Boot off; on Ubuntu, wanmetal installs signed modules instead",
        )
    if driver["error"] and not found:
        add("smi", f"nvidia-smi fails: {driver['error']}", "see dmesg for lines with NVRM; restart the host")
    return found


# -- all of it


def gpu_info(root: Path = Path("/")) -> dict[str, Any]:
    """See the documentation of the module."""
    run = runner(root)
    kernel = _text(root / "proc/sys/kernel/osrelease").strip()
    host = {
        "kind": kind_of_host(root),
        "kernel": kernel,
        "headers": (root / "lib/modules" / kernel / "build").exists() if kernel else False,
        "secure_boot": secure_boot(root),
    }
    driver = driver_state(root, run, kernel)
    driver["packages"] = packages(_text(root / "var/lib/dpkg/status"))
    smi = smi_cards(driver.pop("query"))
    gpus = merged(pci_cards(root), smi, partial=host["kind"] != "machine")
    slices = smi_mig_devices(run(["nvidia-smi", "-L"])[1]) if any(gpu["mig"] for gpu in gpus) else {}
    for gpu in gpus:
        gpu["mig_devices"] = slices.get(gpu["uuid"] or "", [])
        if gpu["mig_devices"]:
            gpu["sources"]["mig_devices"] = "nvidia-smi"
    return {
        "gpus": gpus,
        "driver": driver,
        "host": host,
        "devices": list(_devices(gpus)),
        "problems": diagnose(host, gpus, driver),
        "sources": {
            "driver.loaded": "/proc/driver/nvidia/version, or nvidia-smi",
            "driver.installed": "modinfo",
            "driver.packages": "/var/lib/dpkg/status",
            "driver.ready": "nvidia-smi",
            "driver.cuda": "nvidia-smi",
            "driver.nouveau": "/proc/modules",
            "driver.managed": "/etc/apt/apt.conf.d",
            "host.kind": "/proc/sys/kernel/osrelease, /run/systemd/container, /proc/1/environ",
            "host.kernel": "/proc/sys/kernel/osrelease",
            "host.headers": "/lib/modules",
            "host.secure_boot": "/sys/firmware/efi/efivars",
        },
    }


def _devices(gpus: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """What a program can be given: each GPU, or each slice of one that MIG has cut up, which is not given itself."""
    for gpu in gpus:
        if gpu["index"] is None:
            continue
        parts = gpu["mig_devices"] if gpu["mig"] else [gpu]
        for part in parts:
            yield {
                "uuid": part["uuid"],
                "name": gpu["name"] + (f" MIG {part['profile']}" if gpu["mig"] else ""),
                "vram_mb": part["vram_mb"],
                "compute_capability": gpu["compute_capability"],
                "gpu": gpu["uuid"],
            }


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
