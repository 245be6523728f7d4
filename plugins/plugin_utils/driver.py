"""What has to be done for a host's NVIDIA driver: decided from what gpu_info found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Gpu = Mapping[str, Any]

NEED_OPEN = frozenset({"blackwell"})
"""Generations that the proprietary modules do not run on."""
NEED_PROPRIETARY = frozenset({"maxwell", "pascal", "volta"})
"""Generations that the open modules do not run on."""
LAST_FOR_PROPRIETARY_ONLY = 580
LAST_NUMBERED = 580
"""From the next branch on, packages have no number in their names."""

ON_CPU = "or set wanmetal_accelerator: cpu for a trial without one"
_FIRST_KERNEL = {"ubuntu-22.04": "5.15", "ubuntu-24.04": "6.8", "ubuntu-26.04": "7.0"}
_FIRST_BRANCH = {"debian-13": 590, "ubuntu-26.04": 595}
"""Where the vendor's repository for a system has no earlier one."""


def version(text: str | None) -> tuple[int, ...]:
    """A driver's version, to compare."""
    return tuple(int(part) for part in re.findall(r"\d+", text or ""))


def driver_plan(
    gpu: Gpu,
    *,
    system: str,
    minimum: str,
    branch: str = "580",
    accelerator: str = "gpu",
    enabled: bool = True,
    source: str = "auto",
    installed: bool = False,
    restarted: bool = False,
) -> dict[str, Any]:
    """Decide. See the documentation of the filter."""
    plan: dict[str, Any] = {
        **{"action": "none", "found": "", "needed": "", "fix": "", "why": "", "notes": [], "modules": ""},
        **{"source": "", "pinning": [], "packages": [], "headers": []},
    }
    if accelerator == "cpu":
        return plan | {"why": "wanmetal_accelerator is cpu"}
    cards = [card for card in gpu["gpus"] if card["kernel_driver"] != "vfio-pci"]
    driver = gpu["driver"]
    from_ubuntu = source == "ubuntu" or (
        source == "auto" and system.startswith("ubuntu") and gpu["host"]["secure_boot"]
    )
    wanted, branch = branch, branch if from_ubuntu else str(max(int(branch), _FIRST_BRANCH.get(system, 0)))
    plan["notes"] = _notes(cards, driver, wanted)
    bad = _bad(cards, driver, minimum)
    if not bad:
        return plan | {"why": f"driver {driver['loaded']} works"}

    def refuse(found: str, fix: str) -> dict[str, Any]:
        return plan | {
            "action": "refuse",
            "found": found,
            "needed": f"one that works, with driver {minimum} or later",
            "fix": fix,
        }

    elsewhere = _elsewhere(gpu, cards, bad, minimum)
    if elsewhere:
        return refuse(*elsewhere)
    if not enabled:
        return refuse(
            f"{bad}, and nvidia_driver_enabled is false", "install the driver, or set nvidia_driver_enabled: true"
        )
    plan["modules"] = _modules(cards)
    unfit = _unfit(cards, branch, minimum, system)
    if unfit:
        return refuse(*unfit)
    problems = {problem["kind"]: problem for problem in gpu["problems"]}
    waits = _first(problems, "mismatch", *(["nouveau"] if installed else []))
    # Unknown is what does not load: whether it will do is seen after the restart.
    will_do = driver["installed"] is None or version(driver["installed"]) >= version(minimum)
    if waits and will_do and not restarted:
        return plan | {"action": "restart", "why": waits["found"]}
    if installed:
        worst = _first(problems, "mok", "headers", "not built", "mismatch", "nouveau", "smi")
        return refuse(
            worst.get("found") or f"{bad} after the driver was installed", worst.get("fix") or "see dmesg on the host"
        )
    if branch != wanted:
        plan["notes"].append(
            f"the vendor's repository for {system} begins with branch {branch}, which is installed in place of {wanted}"
        )
    packages = _packages(gpu, system, branch, plan["modules"], "ubuntu" if from_ubuntu else "vendor")
    return plan | {"action": "install", "why": bad} | packages


def _first(problems: Mapping[str, Mapping[str, str]], *kinds: str) -> Mapping[str, str]:
    return next((problems[kind] for kind in kinds if kind in problems), {})


def _bad(cards: Sequence[Gpu], driver: Gpu, minimum: str) -> str:
    """What keeps the driver from being a good one."""
    if not driver["ready"]:
        return driver["error"] or (
            f"driver {driver['loaded']} is loaded, and there is no nvidia-smi" if driver["loaded"] else "no driver"
        )
    if version(driver["loaded"]) < version(minimum):
        return f"driver {driver['loaded']}"
    if driver["installed"] and driver["installed"] != driver["loaded"] and driver["loaded_modules"]:
        return f"driver {driver['loaded']} runs and {driver['installed']} is installed"
    lost = [card["name"] for card in cards if card["index"] is None and card["architecture"] in NEED_OPEN]
    if lost and driver["loaded_modules"] == "proprietary" and _modules(cards) == "open":
        return f"the proprietary modules, which do not run on {', '.join(lost)}"
    return ""


def _elsewhere(gpu: Gpu, cards: Sequence[Gpu], bad: str, minimum: str) -> tuple[str, str] | None:
    """Where no driver can be installed: what was found, and the fix."""
    kind = gpu["host"]["kind"]
    if kind == "wsl":
        return f"WSL, whose driver is Windows' ({bad})", f"install driver {minimum} or later in Windows, {ON_CPU}"
    if kind == "container" and (cards or gpu["driver"]["ready"]):
        return (
            f"a container, whose driver is its machine's ({bad})",
            f"install driver {minimum} or later on the machine and give the container its GPUs, {ON_CPU}",
        )
    if not cards and gpu["gpus"]:
        return "cards that are all given to virtual machines (vfio-pci)", f"give the host one back, {ON_CPU}"
    if not cards and not gpu["driver"]["ready"]:
        return "none", f"use a host with an NVIDIA GPU, {ON_CPU}"
    return None


def _modules(cards: Sequence[Gpu]) -> str:
    return "proprietary" if any(card["architecture"] in NEED_PROPRIETARY for card in cards) else "open"


def _unfit(cards: Sequence[Gpu], branch: str, minimum: str, system: str) -> tuple[str, str] | None:
    """Why no driver of that branch runs these cards."""
    if all(card["architecture"] == "older" for card in cards):
        return f"{_named(cards)}, older than Maxwell", f"use a host with a later card, {ON_CPU}"
    if int(branch) < version(minimum)[0]:
        return (
            f"nvidia_driver_branch: {branch} with a CUDA version that needs driver {minimum}",
            "set nvidia_driver_branch to a later one, or choose another wanmetal_lane",
        )
    if _modules(cards) == "proprietary" and int(branch) > LAST_FOR_PROPRIETARY_ONLY:
        old = [card for card in cards if card["architecture"] in NEED_PROPRIETARY]
        if _FIRST_BRANCH.get(system, 0) > LAST_FOR_PROPRIETARY_ONLY:
            return (
                f"{_named(old)} on {system}, for which the vendor has no driver of branch {LAST_FOR_PROPRIETARY_ONLY}, "
                "the last one for Maxwell, Pascal and Volta",
                f"use a host with Debian 12, Ubuntu 22.04 or 24.04, {ON_CPU}",
            )
        return (
            f"nvidia_driver_branch: {branch} with {_named(old)}",
            f"set nvidia_driver_branch: {LAST_FOR_PROPRIETARY_ONLY}, the last branch for Maxwell, Pascal and Volta",
        )
    return None


def _named(cards: Sequence[Gpu]) -> str:
    return ", ".join(dict.fromkeys(card["name"] for card in cards))


def _notes(cards: Sequence[Gpu], driver: Gpu, branch: str) -> list[str]:
    notes = []
    if driver["loaded"] and driver["loaded"].partition(".")[0] != branch:
        notes.append(
            f"driver {driver['loaded']} is not of nvidia_driver_branch: {branch}; it stays as long as it works"
        )
    lost = [card for card in cards if card["architecture"] in NEED_OPEN]
    if lost and _modules(cards) == "proprietary":
        old = [card for card in cards if card["architecture"] in NEED_PROPRIETARY]
        notes.append(
            f"{_named(lost)} needs open kernel modules, {_named(old)} proprietary ones: the former stays unused"
        )
    return notes


# -- packages


def _packages(gpu: Gpu, system: str, branch: str, modules: str, source: str) -> dict[str, Any]:
    kernel = gpu["host"]["kernel"]
    flavour = kernel_flavour(system, kernel)
    ubuntu = system.startswith("ubuntu")
    if source == "ubuntu":
        series = f"{branch}-server" + ("-open" if modules == "open" else "")
        metas = [f"linux-modules-nvidia-{series}-{flavour}"] if flavour else []
        return {
            "source": "ubuntu",
            "packages": [
                f"linux-modules-nvidia-{series}-{kernel}",
                *metas,
                f"nvidia-headless-no-dkms-{series}",
                f"nvidia-utils-{branch}-server",
            ],
        }
    number = f"-{branch}" if int(branch) <= LAST_NUMBERED else ""
    headers = [f"linux-headers-{flavour}"] if flavour else []
    return {
        "source": "vendor",
        "pinning": [f"nvidia-driver-pinning-{branch}"],
        "packages": [
            f"{'nvidia-open' if modules == 'open' else 'cuda-drivers'}{number}",
            *([] if ubuntu else ["nvidia-persistenced"]),
        ],
        "headers": headers if gpu["host"]["headers"] else [f"linux-headers-{kernel}", *headers],
    }


def kernel_flavour(system: str, kernel: str) -> str:
    """What the packages that follow a kernel through its upgrades end in. Empty for a kernel of somebody else's."""
    if system.startswith("debian"):
        match = re.fullmatch(
            r"[\d.]+(?:-\d+|-\d+\.bpo\.\d+|(?:-[\d.]+)?\+deb\d+(?:\.\d+)?)-((?:cloud-|rt-)?amd64)", kernel
        )
        return match[1] if match else ""
    match = re.fullmatch(r"(\d+\.\d+)\.\d+-\d+-([a-z]+)", kernel)
    if not match:
        return ""
    first = _FIRST_KERNEL.get(system)
    later = match[2] == "generic" and first is not None and match[1] != first
    return f"generic-hwe-{system.partition('-')[2]}" if later else match[2]


# -- what apt says


_APT = (
    (
        r"No package matching '([^']+)' is available|Unable to locate package (\S+)|no candidate",
        "the repositories have no such package: {0}",
        "see which branches there are with apt-cache search nvidia-driver-pinning on the host, and choose one by "
        "nvidia_driver_branch",
    ),
    (
        r"[Hh]eld packages|held broken|--allow-change-held-packages",
        "packages are on hold, or hold each other back",
        "apt-mark showhold lists what is on hold on the host, and apt-mark unhold PACKAGE lets it go; remove a driver "
        "that came from elsewhere",
    ),
    (
        r"NO_PUBKEY|EXPKEYSIG|BADSIG|is not signed|signatures? (?:couldn't|were invalid)|GPG error",
        "a repository's signature does not fit its key",
        "see that wanmetal_mirrors leads to a true copy, and that the clock of the host is right",
    ),
    (
        r"Failed to fetch|Could not (?:connect|resolve)|Failed to update apt cache|Connection refused|unreachable",
        "a repository does not answer",
        "open the way to it, or name a proxy in wanmetal_environment or a mirror in wanmetal_mirrors, and deploy again",
    ),
    (r"lock", "another program holds apt's lock", "wait until it is done, and deploy again"),
    (r"No space left|enough free space", "the disk is full", "free some space, and deploy again"),
)


def apt_fix(message: str) -> str:
    """What a failure of apt means, with its fix, and what it said."""
    for pattern, found, fix in _APT:
        match = re.search(pattern, message)
        if match:
            what = next((group for group in match.groups() if group), "") if "{0}" in found else ""
            return f"{found.format(what).rstrip(': ')}.\n  fix   {fix}\n  said  {message.strip()[-1500:]}"
    return f"apt failed.\n  fix   see what it says\n  said  {message.strip()[-1500:]}"
