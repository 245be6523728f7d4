"""What a deploy is going to do to a host, and whether the host is fit for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import size
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import Problem, counted, told

TESTED = {
    "debian-12": "Debian 12",
    "debian-13": "Debian 13",
    "ubuntu-22.04": "Ubuntu 22.04",
    "ubuntu-24.04": "Ubuntu 24.04",
    "ubuntu-26.04": "Ubuntu 26.04",
}
ARCHITECTURE = "x86_64"
OLDEST_SYSTEMD = 249
"""The systemd of Ubuntu 22.04."""

Plan = Mapping[str, Any]
State = Mapping[str, Any]

_PART: dict[str, Any] = {
    "release": "",
    "version": "",
    "source": "",
    "built": True,
    "fetch": [],
    "disk": [],
    "ports": [],
    "memory_mb": 0,
    "gpu": "",
    "driver": {},
    "restarts": [],
    "urls": [],
    "problems": [],
    "notes": [],
}


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One plan out of those of all roles. Older Ansible renders numbers as texts, so they are read as such."""
    full = []
    for part in parts:
        strange = part.keys() - _PART.keys()
        if strange:
            raise ValueError(f"a part of the plan has unknown keys: {', '.join(sorted(strange))}")
        full.append({**_PART, **part})
    return {
        "releases": [
            {key: part[key] for key in ("release", "version", "source", "built")} for part in full if part["release"]
        ],
        "fetch": [{**entry, "bytes": int(entry.get("bytes") or 0)} for part in full for entry in part["fetch"]],
        "disk": [
            {**entry, "bytes": int(entry["bytes"]), "files": int(entry.get("files") or 0)}
            for part in full
            for entry in part["disk"]
            if int(entry["bytes"])
        ],
        "ports": [{**entry, "port": int(entry["port"])} for part in full for entry in part["ports"]],
        "memory_mb": sum(int(part["memory_mb"]) for part in full),
        "gpu": [part["gpu"] for part in full if part["gpu"]],
        "driver": next((part["driver"] for part in full if part["driver"]), {}),
        "restarts": _once(unit for part in full for unit in part["restarts"]),
        "problems": [entry for part in full for entry in part["problems"]],
        "notes": [note for part in full for note in part["notes"]],
        # What is there already is not fetched, so nobody has to answer for it.
        "urls": _once(url for part in full if part["fetch"] for url in part["urls"]),
    }


def _once(items: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(items))


# -- whether the host is fit


def problems(
    plan: Plan,
    state: State,
    *,
    places: Mapping[str, Mapping[str, str]],
    skip: Collection[str] = (),
    allow_untested_os: bool = False,
) -> list[Problem]:
    """Everything about the host that keeps the plan from working. ``places`` are those that settings name."""
    found = [
        *_root(state["uid"]),
        *(Problem(**{"kind": "settings", **entry}) for entry in plan["problems"]),
        *([] if allow_untested_os else _system(state)),
        *_systemd(state["systemd"]),
        *_ours(places, state),
        *_strange_units(plan["ports"], state["strange_units"]),
        *_disk(plan["disk"], state["filesystems"]),
        *_memory(plan["memory_mb"], state["memory_mb"]),
        *_gpu(plan["gpu"], plan["driver"]),
        *_ports(plan["ports"], state["listeners"]),
        *_clock(state["synchronised"]),
        *([] if "sources" in skip else _sources(plan["urls"], state["urls"])),
    ]
    return [problem for problem in found if problem.kind not in skip]


def _root(uid: int) -> Iterator[Problem]:
    if uid:
        yield Problem(
            "root",
            "rights",
            f"commands run as the user with the number {uid}",
            "root, by sudo or by logging in as root",
            "remove ansible_become: false and become: false for this host, or set ansible_user: root",
        )


def _ours(places: Mapping[str, Mapping[str, str]], state: State) -> Iterator[Problem]:
    """What others have made is neither changed nor, later, removed."""
    for option, name in places.get("users", {}).items():
        user = state["users"][name]
        if user and not user["ours"]:
            yield Problem(
                "ours",
                option,
                f"{name}, an account of this host that no deploy has made (number {user['uid']}, home {user['home']}, "
                f"shell {user['shell']})",
                "an account of its own: its home and shell are changed, and it is removed when it is no longer needed",
                f"choose a name that no account of the host has, such as {option}: wanmetal-{option.split('_')[0]}",
            )
    for option, name in places.get("groups", {}).items():
        group = state["groups"][name]
        if group and not group["ours"]:
            yield Problem(
                "ours",
                option,
                f"{name}, a group of this host that no deploy has made, or that other accounts have as well",
                "a group of its own: its members can read the settings, and it is removed when it is no longer needed",
                f"choose a name that no group of the host has, such as {option}: wanmetal",
            )
    for option, path in places.get("folders", {}).items():
        folder = state["folders"][path]
        if folder and not folder["ours"]:
            names = ", ".join(told(name) for name in folder["entries"])
            yield Problem(
                "ours",
                option,
                f"{path}, in which is {names}" if folder["folder"] else f"{path}, which is no folder",
                "a folder of its own, empty or made by a deploy: its owner changes, and an uninstall removes it",
                f"choose one that is not there yet; if all that is in it is wanmetal's: touch {path}/.wanmetal",
            )


def _strange_units(ports: Sequence[Mapping[str, Any]], strange: Collection[str]) -> Iterator[Problem]:
    wanted = _once(name for port in ports for name in (port["unit"], _service(port["unit"]), _template(port["unit"])))
    for unit in (name for name in wanted if name in strange):
        yield Problem(
            "ours",
            unit,
            f"/etc/systemd/system/{unit}, a service of this host that no deploy has made",
            "a name that is free: the service is replaced, and an uninstall removes it",
            f"if it is no longer needed: systemctl disable --now {unit}; rm /etc/systemd/system/{unit}. Else give it "
            "another name there",
        )


def _tested(state: State) -> bool:
    return f"{state['os']['id']}-{state['os']['version']}" in TESTED


def _system(state: State) -> Iterator[Problem]:
    if not _tested(state):
        yield Problem(
            "os",
            "operating system",
            state["os"]["name"] or "one that does not say what it is",
            ", ".join(TESTED.values()),
            "use one of these, or set preflight_allow_untested_os: true to try",
        )
    if state["architecture"] != ARCHITECTURE:
        yield Problem(
            "arch",
            "architecture",
            state["architecture"],
            ARCHITECTURE,
            "use such a host, since the locked packages are made for it",
        )


def _systemd(systemd: Mapping[str, Any]) -> Iterator[Problem]:
    version, state = systemd["version"], systemd["state"]
    if version is None:
        found, fix = (
            "another init, or none",
            "use a host, a virtual machine or a container that systemd has started, which pods of RunPod are not",
        )
    elif version < OLDEST_SYSTEMD:
        found, fix = f"systemd {version}", "upgrade the operating system"
    elif state not in {"running", "degraded", "starting"}:
        found, fix = f"systemd in the state {state}", "see systemctl status and systemctl list-jobs on the host"
    else:
        return
    yield Problem("systemd", "init", found, f"systemd {OLDEST_SYSTEMD} or later, running", fix)


def _disk(disk: Sequence[Mapping[str, Any]], filesystems: Mapping[str, Any]) -> Iterator[Problem]:
    for room, entries in _by_filesystem(disk, filesystems):
        what = f"filesystem {room['mount']}"
        why = ", ".join(f"{size(entry['bytes'])} for {entry['why']} in {entry['path']}" for entry in entries)
        needed = sum(entry["bytes"] for entry in entries)
        files = sum(entry["files"] for entry in entries)
        if room["read_only"]:
            yield Problem("disk", what, "mounted read-only", f"room to write: {why}", "mount it read-write")
            continue
        if room["free_bytes"] < needed:
            yield Problem(
                "disk",
                what,
                f"{size(room['free_bytes'])} free",
                f"{size(needed)}: {why}",
                "free space there, or move the folder to another filesystem by wanmetal_root, wanmetal_data_dir or "
                "wanmetal_cache_dir",
            )
        if room["free_inodes"] is not None and room["free_inodes"] < files:
            yield Problem(
                "disk",
                what,
                f"{counted(room['free_inodes'], 'free inode')}",
                f"{files} for as many files",
                "remove small files there, or move the folder to another filesystem",
            )


def _by_filesystem(
    disk: Sequence[Mapping[str, Any]], filesystems: Mapping[str, Any]
) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Filesystems, each with what is to be written to it."""
    by_device: dict[int, list[Mapping[str, Any]]] = {}
    for entry in disk:
        device = filesystems[entry["path"]]["device"]
        if "linked_to" in entry and filesystems[entry["linked_to"]]["device"] == device:
            entry = {**entry, "bytes": int(entry["linked_bytes"])}
        by_device.setdefault(device, []).append(entry)
    return [(filesystems[entries[0]["path"]], entries) for entries in by_device.values()]


def _memory(needed: int, found: int) -> Iterator[Problem]:
    if found < needed:
        yield Problem(
            "memory",
            "memory",
            size(found * 2**20),
            size(needed * 2**20),
            "give the host more, or choose less demanding settings",
        )


def _gpu(reasons: Sequence[str], driver: Mapping[str, Any]) -> Iterator[Problem]:
    if reasons and driver.get("action") == "refuse":
        needed = f"{driver['needed']}: {', '.join(reasons)}"
        yield Problem("gpu", "NVIDIA GPU", driver["found"], needed, driver["fix"])


def _ports(ports: Sequence[Mapping[str, Any]], listeners: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    owners: dict[int, Mapping[str, Any]] = {}
    for port in ports:
        if port["port"] > 65535:
            yield Problem(
                "ports",
                f"TCP port {port['port']}",
                f"wanted by {port['unit']}",
                "a port up to 65535; several workers take one each, from their first one on",
                f"choose a lower {port['option']}",
            )
        owner = owners.setdefault(port["port"], port)
        if owner is not port:
            yield Problem(
                "ports",
                f"TCP port {port['port']}",
                f"wanted by {owner['unit']} and by {port['unit']}",
                "a port for each service; several workers take one each, from their first one on",
                f"choose another {port['option']}, or another {owner['option']}",
            )
        for holder in listeners:
            if holder["port"] == port["port"] and _service(holder["unit"]) != _service(port["unit"]):
                yield Problem(
                    "ports",
                    f"TCP port {port['port']}",
                    f"held by {_holder(holder)}",
                    f"free, or held by {port['unit']}",
                    f"stop that program, or choose another {port['option']}",
                )
                break


def _service(unit: str) -> str:
    """The service that a unit is or is part of: comfyui@0.service is part of comfyui.service."""
    name, _unused, kind = unit.rpartition(".")
    return f"{name.partition('@')[0]}.{kind}"


def _template(unit: str) -> str:
    """The file of a unit that is one of several: comfyui@.service for comfyui@0.service."""
    name, _unused, kind = unit.rpartition(".")
    return f"{name.partition('@')[0]}@.{kind}" if "@" in name else unit


def _holder(holder: Mapping[str, Any]) -> str:
    if holder["pid"] is None:
        return f"a program of user {holder['user']} that is not visible"
    unit = f" of {holder['unit']}" if holder["unit"] else ""
    return f"{holder['command']} (process {holder['pid']}{unit}, user {holder['user']})"


def _clock(synchronised: bool | None) -> Iterator[Problem]:
    if synchronised is False:
        yield Problem(
            "time",
            "clock",
            "not synchronised",
            "the right time, or certificates and package lists may be refused",
            "apt-get install systemd-timesyncd (or chrony), and wait until timedatectl shows it synchronised",
        )


_ANSWERS = {
    "dns": "its host name is unknown",
    "refused": "connection refused",
    "tls": "its certificate is not trusted",
    "timeout": "no answer in time",
    "missing": "no such file on the host",
    "unreachable": "no route, or the connection broke",
}


def _sources(urls: Sequence[str], answers: Mapping[str, Any]) -> Iterator[Problem]:
    for url in urls:
        answer = answers[url]
        if not answer["ok"]:
            yield Problem(
                "sources",
                told(url),
                _ANSWERS.get(answer["reason"]) or f"HTTP status {answer['status']}",
                "an answer, since something is fetched from there",
                "open the way to it, or name a proxy or certificates in wanmetal_environment, or a mirror in "
                "wanmetal_mirrors",
            )


# -- what the operator is shown


def summary(plan: Plan, state: State, *, skip: Collection[str] = ()) -> list[str]:
    """The plan as lines for a terminal."""
    rows = [("host", _host(state))]
    driver = plan["driver"]
    if driver.get("action") in _DRIVER:
        rows.append(("driver", _DRIVER[driver["action"]].format(**driver)))
    for release in plan["releases"]:
        made = "is on the host" if release["built"] else "will be built"
        rows.append(("release", f"{release['release']} ({release['version']} from {release['source']}) {made}"))
    for entry in plan["fetch"]:
        amount = f", {size(entry['bytes'])}" if entry["bytes"] else ""
        origin = f" from {told(entry['url'])}" if entry["url"] else ""
        rows.append(("fetch", f"{entry['what']}{amount}{origin}"))
    for room, entries in _by_filesystem(plan["disk"], state["filesystems"]):
        needed = sum(entry["bytes"] for entry in entries)
        rows.append(("disk", f"{size(needed)} needed on {room['mount']}, {size(room['free_bytes'])} free"))
    there = set(state["units"])
    for label, again in (("start", False), ("restart", True)):
        rows += [(label, unit) for unit in plan["restarts"] if (bool({unit, _template(unit)} & there)) == again]
    if len(rows) == 1 + len(plan["releases"]) and all(release["built"] for release in plan["releases"]):
        rows.append(("plan", "nothing to fetch, to build or to start"))
    rows += [("note", note) for note in [*_notes(state, skip), *driver.get("notes", []), *plan["notes"]]]
    return [f"{label:<8} {text}" for label, text in rows]


def _host(state: State) -> str:
    return f"{state['os']['name']}, {size(state['memory_mb'] * 2**20)} of memory, {_cards(state['gpu'])}"


def _cards(gpu: Mapping[str, Any]) -> str:
    if not gpu["gpus"]:
        return "no NVIDIA GPU"
    memory = [f" ({size(card['vram_mb'] * 2**20)})" if card["vram_mb"] else "" for card in gpu["gpus"]]
    number = Counter(card["name"] + each for card, each in zip(gpu["gpus"], memory, strict=True))
    cards = ", ".join(f"{times} x {name}" if times > 1 else name for name, times in number.items())
    loaded = gpu["driver"]["loaded"]
    return f"{cards}, {f'driver {loaded}' if loaded else 'no NVIDIA driver'}"


_DRIVER = {
    "install": "will be installed from {source}, with {modules} modules, since there is: {why}",
    "restart": "works after a restart of the host: {why}",
}


def _notes(state: State, skip: Collection[str]) -> Iterator[str]:
    if not _tested(state):
        yield f"{state['os']['name']} is not tested"
    if state["systemd"]["state"] == "degraded":
        yield "some units of the host have failed: systemctl --failed"
    if state["systemd"]["state"] == "starting":
        yield "the host is still starting"
    if state["synchronised"] is None:
        yield "whether the clock is right cannot be seen from inside this container"
    if skip:
        yield f"not looked at: {', '.join(sorted(skip))}"
