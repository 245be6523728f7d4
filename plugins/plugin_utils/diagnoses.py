"""What makes a worker fail, how it shows, and how to fix it: a table, and what looks at a host's evidence with it.

The texts for messages of ours are those of docs/troubleshooting.md; here is what each looks like in a log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]
Look = Callable[[Facts], Iterable[str]]
"""What shows that it is so; nothing where it is not."""

_DOCUMENT = Path(__file__).resolve().parents[2] / "docs/troubleshooting.md"
_MOST_FOUND = 3
_LONGEST = 300
_GB = 10**9
_LONG_START_S = 90
_LONG_DEPLOY_S = 90
_SYSTEMS = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04", "26.04")}
_OURS = ("comfyui", "jupyterlab", "wanmetal-")
_DEFAULT_PORTS = {8188, 8288, 8388, 8488, 8888}


@dataclass(frozen=True)
class Diagnosis:
    """One thing that can be wrong."""

    name: str
    cause: str
    fix: str
    look: Look


def said(pattern: str, *places: str) -> Look:
    """Lines that fit, of the services' journal, the kernel's, or of what the last deploy said of this host."""
    wanted = re.compile(pattern, re.IGNORECASE)

    def look(facts: Facts) -> Iterator[str]:
        for place in places or ("journal", "deploy"):
            # The last ones are what counts.
            for line in reversed(facts.get(place) or []):
                if wanted.search(line):
                    yield line.strip()

    return look


def each(name: str, text: Callable[[Any], str | bool]) -> Look:
    """A line for each entry of a list or a mapping of the evidence."""
    return lambda facts: [str(line) for one in facts.get(name) or [] if (line := text(one))]


def gpu_problem(*kinds: str) -> Look:
    """What the look at the GPU has named."""
    return lambda facts: [one["found"] for one in facts["gpu"]["problems"] if one["kind"] in kinds]


# -- looks that are more than a pattern


def _disk(facts: Facts) -> Iterator[str]:
    for path, room in facts["filesystems"].items():
        if room["read_only"]:
            yield f"{path}: {room['mount']} is mounted read-only"
        elif room["free_bytes"] < _GB:
            yield f"{path}: {room['free_bytes'] // 10**6} MB free on {room['mount']}"
        elif room["free_inodes"] is not None and room["free_inodes"] < 1000:
            yield f"{path}: {room['free_inodes']} inodes free on {room['mount']}"


def _fleeting(facts: Facts) -> Iterator[str]:
    room = facts["filesystems"].get(facts["place"]["data"], {})
    if room.get("type") in {"tmpfs", "ramfs", "overlay"} and not (room["type"] == "overlay" and facts["container"]):
        yield f"{facts['place']['data']} is on {room['type']}"


def _exposed(facts: Facts) -> Iterator[str]:
    for one in facts["listeners"]:
        ours = one["unit"].startswith(_OURS) or one["port"] in _DEFAULT_PORTS
        if ours and not ip_address(one["address"]).is_loopback and not facts["place"]["allow_remote"]:
            yield f"{one['unit'] or one['command'] or 'a program'} listens on {one['address']}:{one['port']}"


def _ports(facts: Facts) -> Iterator[str]:
    for port in facts["place"]["ports"]:
        for one in facts["listeners"]:
            if one["port"] == port and one["command"] and not one["unit"].startswith(_OURS):
                yield f"port {port} is held by {one['command']} (process {one['pid']}, {one['unit'] or 'no unit'})"


def _memory(facts: Facts) -> Iterator[str]:
    yield from said(r"out of memory: killed process|oom-kill:.*comfyui|memory cgroup out of memory", "kernel_log")(
        facts
    )
    yield from said(r"oom-kill|A process of this unit has been killed by the OOM killer", "journal")(facts)
    for unit, one in facts["units"].items():
        if one.get("Result") == "oom-kill":
            yield f"{unit} ended with oom-kill"
        elif one.get("Result") == "signal" and one.get("ExecMainStatus") == "9":
            # Containers are not told why.
            yield f"{unit} was killed by signal 9, as the kernel does where memory runs out"


def _failed(facts: Facts) -> Iterator[str]:
    for unit, one in facts["units"].items():
        if one.get("ActiveState") == "failed" or (one.get("SubState") == "auto-restart"):
            yield f"{unit} is {one['ActiveState']} ({one.get('Result')}), {one.get('NRestarts', 0)} restarts"


def _silent(facts: Facts) -> Iterator[str]:
    for unit, error in facts["answers"].items():
        if error and facts["units"].get(unit, {}).get("ActiveState") == "active":
            yield f"{unit} is active, and does not answer: {error}"


def _start_seconds(unit: Mapping[str, str]) -> float:
    begun, active = (unit.get(f"{name}TimestampMonotonic", "") for name in ("ExecMainStart", "ActiveEnter"))
    return (int(active) - int(begun)) / 1e6 if begun.isdigit() and active.isdigit() and int(begun) else 0.0


def _slow_start(facts: Facts) -> Iterator[str]:
    for unit, one in facts["units"].items():
        if unit.startswith("comfyui") and (seconds := _start_seconds(one)) > _LONG_START_S:
            yield f"{unit} took {seconds:.0f} s to start"
            yield from said(r"\b[1-9]\d+\.\d seconds:.*custom_nodes", "journal")(facts)


def _torch(facts: Facts) -> Iterator[str]:
    lane, found = facts["release"].get("lane"), facts["packages"].get("torch") or []
    if not found and facts["release"]:
        yield "the environment has no torch"
    for version in found:
        build = version.partition("+")[2]
        # Without a suffix it is the one of the package index, which suits whatever CUDA it was made for.
        if lane and build and build != lane:
            yield f"torch {version} is there, and the release was built for {lane}"
    yield from (
        f"{name} is there more than once: {', '.join(versions)}"
        for name, versions in facts["packages"].items()
        if len(versions) > 1
    )


def _unverified(facts: Facts) -> Iterator[str]:
    current, verified = facts["current"], facts["verified"].get("release")
    if facts["there"] and not current:
        yield "no release is current"
    elif current and verified != current:
        yield f"release {current} is current, and {verified or 'none'} was verified"
    yield from (f"the link {name} leads nowhere" for name in facts["broken_links"])


def _held(facts: Facts) -> Iterator[str]:
    held = [name for name, one in facts["gpu"]["driver"]["packages"].items() if one["hold"]]
    if held:
        yield f"on hold: {', '.join(held)}"


def _branches(facts: Facts) -> Iterator[str]:
    """Packages of the driver are of several branches, as an upgrade leaves them that was not meant."""
    versions = {
        one["version"].partition(".")[0]: name
        for name, one in facts["gpu"]["driver"]["packages"].items()
        if re.match(r"(nvidia-driver|libnvidia-compute|nvidia-kernel|libcuda)", name)
    }
    if len(versions) > 1:
        yield "packages of several branches: " + ", ".join(
            f"{name} {branch}" for branch, name in sorted(versions.items())
        )


def _slow_deploy(facts: Facts) -> Iterator[str]:
    for line in facts.get("deploy_all") or []:
        total = re.search(r"^\s*total\s+(\d+\.\d) s\s+nothing changed", line)
        if total and float(total[1]) > _LONG_DEPLOY_S:
            yield f"a deploy that changed nothing took {total[1]} s"


def _system(facts: Facts) -> Iterator[str]:
    known = _SYSTEMS.get(facts["os"]["id"], ())
    if facts["os"]["version"] not in known:
        yield f"{facts['os']['id'] or 'unknown'} {facts['os']['version']}".strip()


def _systemd(facts: Facts) -> Iterator[str]:
    if facts["systemd"]["version"] is None:
        yield "another init runs"
    elif facts["systemd"]["state"] not in {"running", "degraded", "starting"}:
        yield f"systemd is {facts['systemd']['state']}"


def _gpu_missing(facts: Facts) -> Iterator[str]:
    if facts["place"]["accelerator"] == "gpu" and not facts["gpu"]["devices"] and not facts["gpu"]["problems"]:
        yield facts["gpu"]["driver"]["error"] or "none that works"


_DEPLOY_AGAIN = "run ./deploy again"

DIAGNOSES = (
    # -- what users of such hosts complain about
    Diagnosis(
        "weights of a pack are missing",
        "A node pack downloads weights while it renders, and their address gives 404 or cannot be reached.",
        "Name the file in wan_models_files, with the folder that the pack reads, so that a deploy fetches it.",
        said(
            r"(404|not found|failed to (download|load)|connection refused|URLError|Max retries).*"
            r"(rife|film_net|interpolation|\.pth|\.pkl|\.ckpt|\.onnx|\.safetensors|huggingface\.co)"
            r"|(rife|film_net|\.pth|\.pkl|\.onnx|huggingface\.co)\S*.*(HTTP Error 404|404 Client Error|refused)",
            "journal",
        ),
    ),
    Diagnosis(
        "SageAttention is built without a GPU",
        "Its build asks the GPU for its architecture, and there is none where it is built.",
        "Let the role sageattention build it: it names the architectures. By hand, set TORCH_CUDA_ARCH_LIST.",
        said(
            r"No target compute capabilities|get_device_capability.*no (nvidia|cuda)|CUDA_HOME environment variable is"
        ),
    ),
    Diagnosis(
        "SageAttention lacks this GPU's architecture",
        "The wheel was built for other GPUs than this one.",
        "Remove it from wanmetal_cache_dir/sageattention and deploy again, or set sageattention_enabled: false.",
        said(r"SM\d+ kernel is not available|Unsupported CUDA architecture: sm|sageattn.*no kernel image"),
    ),
    Diagnosis(
        "black or noisy frames",
        "Numbers overflow: SageAttention does not suit this model, or --fast or fp16 does not.",
        "Set sageattention_enabled: false, remove --fast from comfyui_extra_args, deploy, and render the same again.",
        said(r"RuntimeWarning: invalid value encountered in cast|nans? (was|were) (found|produced|detected)"),
    ),
    Diagnosis(
        "torch has no kernels for this GPU",
        "The torch of this CUDA version was not built for a GPU as new, or as old, as this one.",
        "Choose the CUDA version that docs/gpu.md names for it, by wanmetal_lane, and deploy.",
        said(
            r"no kernel image is available for execution|is not compatible with the current PyTorch installation"
            r"|CUDA error: invalid device function|cudaErrorNoKernelImageForDevice"
        ),
    ),
    Diagnosis(
        "the environment was changed by hand",
        "Something installed packages into the release's environment, such as the requirements of a node pack.",
        f"Remove the release, {_DEPLOY_AGAIN}, and name the pack in custom_nodes_extra."
        " Its packages are locked with all others then.",
        _torch,
    ),
    Diagnosis(
        "torch without CUDA",
        "The torch that runs was built for the CPU alone.",
        f"Remove the release, {_DEPLOY_AGAIN}; nothing may be installed into its environment by hand.",
        said(r"Torch not compiled with CUDA enabled", "journal"),
    ),
    Diagnosis(
        "a package of another numpy",
        "A package was built for another major version of numpy than the one in the environment.",
        "Name another commit of the pack that needs it; custom_nodes_extra and ./deploy lock resolve them together.",
        said(
            r"compiled using NumPy 1|numpy\.dtype size changed|_ARRAY_API not found|module 'numpy' has no attribute",
            "journal",
        ),
    ),
    Diagnosis(
        "a miner runs",
        "Somebody else computes on this host. They came in by an open port, or by a node pack.",
        "Take the host off the network, reinstall it, and change all keys and tokens that were on it.",
        each(
            "processes",
            lambda one: one["miner"] and f"process {one['pid']} ({one['unit'] or 'no unit'}): {one['command']}",
        ),
    ),
    Diagnosis(
        "a program of ComfyUI's user that is not one of wanmetal's services",
        "A node pack, or whoever got in through one, has left a program running.",
        "Look at it (ps -fp PID), end it, and look for what has started it. When in doubt, reinstall the host.",
        each("processes", lambda one: not one["miner"] and f"process {one['pid']} ({one['unit']}): {one['command']}"),
    ),
    Diagnosis(
        "a service that others can reach",
        "ComfyUI asks nobody for a password: whoever reaches the port runs code here.",
        "Keep it on 127.0.0.1 and use a tunnel; comfyui_allow_remote: true says that it is meant.",
        _exposed,
    ),
    Diagnosis(
        "memory of the system has run out",
        "A model, or several of them, needs more memory than the host has: those of 14B want 64 GB.",
        "Choose smaller ones (wan_models_profile), set comfyui_vram_mode, add memory or swap, or render fewer frames.",
        _memory,
    ),
    Diagnosis(
        "memory of the GPU has run out",
        "Frames, their size and the model do not fit the GPU.",
        "Render fewer or smaller frames, choose a smaller wan_models_profile, or set comfyui_vram_mode: lowvram.",
        said(r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|Allocation on device", "journal"),
    ),
    Diagnosis(
        "a slow start",
        "Node packs that take long to import, or a slow disk.",
        "Leave out packs that are named with many seconds; put wanmetal_root on a local SSD.",
        _slow_start,
    ),
    Diagnosis(
        "models do not outlive a restart",
        "The data folder is in memory, or in the layer of an image: models are fetched again after each start.",
        "Set wanmetal_data_dir to a folder on a disk that stays.",
        _fleeting,
    ),
    Diagnosis(
        "a model that is damaged",
        "Its download was cut off, or something else was saved under its name.",
        "Remove it and run ./deploy models; ./deploy models -e wan_models_verify=full reads all of them.",
        each("models", lambda one: one["problem"] not in {"", "unfinished"} and f"{one['path']}: {one['problem']}"),
    ),
    Diagnosis(
        "ComfyUI cannot read a model",
        "The file is cut off, or is no model.",
        "Remove it and run ./deploy models.",
        said(
            r"HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeader|HeaderTooSmall|invalid load key|not a ZIP archive",
            "journal",
        ),
    ),
    Diagnosis(
        "a download that is not done",
        "It was cut off, or still runs.",
        "./deploy models resumes it; journalctl -u wanmetal-models says how far it is.",
        each("models", lambda one: one["problem"] == "unfinished" and f"{one['path']}: {one['bytes']} bytes are there"),
    ),
    Diagnosis(
        "folders that ComfyUI cannot write to",
        "They belong to somebody else, as after copying data as root.",
        f"{_DEPLOY_AGAIN}, which corrects the folders; for files in them: chown -R to ComfyUI's user.",
        each("closed", str),
    ),
    Diagnosis(
        "a file that a service may not read or write",
        "It belongs to somebody else, or its folder is not among those that the service may write to.",
        "chown it to the user of the service; what lies outside of wanmetal_data_dir is read-only for services.",
        said(r"PermissionError|Permission denied|Read-only file system", "journal"),
    ),
    Diagnosis(
        "outputs in folders of their own",
        "Workflows save below a folder (filename_prefix: video/x), and a client that asks for the name alone misses.",
        "Clients have to give subfolder as well, as /history has it; the handler and the API do so. Nothing is lost.",
        each("outputs_below", str),
    ),
    Diagnosis(
        "a service that hangs",
        "It runs and does not answer: it loads a model, or its ComfyUI has gone away.",
        "Wait for what it loads (./deploy logs comfyui); then systemctl restart comfyui, which restarts the API, too.",
        _silent,
    ),
    Diagnosis(
        "a workflow that does not fit this ComfyUI",
        "It was made for another version of ComfyUI or of a node pack, or names a file that the host lacks.",
        "./deploy workflow FILE says what it lacks; its API format has to be saved again after such an upgrade.",
        said(
            r"Failed to validate prompt|prompt_outputs_failed_validation|Value not in list|required_input_missing",
            "journal",
        ),
    ),
    Diagnosis(
        "no compiler for Triton",
        "Triton compiles a small program at run time, and lacks Python's headers, a C compiler, or itself.",
        "apt-get install python3-dev gcc on the host, or turn torch.compile off in the workflow.",
        said(r"Python\.h: No such file|No module named '?triton|Failed to find C compiler|a working triton"),
    ),
    Diagnosis(
        "the driver was upgraded without a restart",
        "An unattended upgrade has replaced it under the kernel module that runs.",
        "Restart the host. nvidia_driver_reboot: true lets a deploy do it. One that it installed stays.",
        gpu_problem("mismatch"),
    ),
    Diagnosis(
        "packages of several driver branches",
        "A package was upgraded to another branch, such as from 570 to 580, and others stayed.",
        "Set nvidia_driver_branch, apt-get install --fix-broken, restart, and deploy: the deploy pins the branch.",
        _branches,
    ),
    # -- and of deploying
    Diagnosis(
        "our files are changed by something else",
        "Another program or person has changed them since, so each deploy changes them back.",
        "Take them out of the other program; your own additions belong in a drop-in: systemctl edit comfyui.",
        each("changed_since", str),
    ),
    Diagnosis(
        "sudo asks for a password on your own machine",
        "A task that runs here wants root, since become is set for localhost.",
        "Set ansible_become: false for localhost; wanmetal needs no root on your machine.",
        said(r"localhost.*sudo: a password is required|delegate.*Missing sudo password", "deploy_all"),
    ),
    Diagnosis(
        "too many requests",
        "A server limits how often it is asked: many hosts behind one address, or none has a token.",
        "Set wan_models_huggingface_token or wan_models_civitai_token, wanmetal_mirrors, or wan_models_share.",
        said(r"HTTP status 429|429 Client Error|Too Many Requests|API rate limit exceeded"),
    ),
    Diagnosis(
        "a condition that is no boolean",
        "ansible-core 2.19 and later refuse such conditions, in a playbook or a role of yours.",
        "Write when: NAME | bool, or when: NAME | length > 0, where the message points to.",
        said(r"Conditional(s)? (result|must).*bool|was derived from value of type", "deploy", "deploy_all"),
    ),
    Diagnosis(
        "Ansible does not find the collection",
        "The playbook runs where the collection is not installed, and without the checkout's ansible.cfg.",
        "Run it from the checkout, or ansible-galaxy collection install it; no ansible.cfg is needed then.",
        said(
            r"couldn't resolve module/action 'wanmetal\.|the role 'wanmetal\.|unable to \w+ collection wanmetal",
            "deploy_all",
        ),
    ),
    Diagnosis(
        "another release runs than the one that was verified",
        "A deploy was cut off, or links were changed by hand.",
        f"{_DEPLOY_AGAIN}: it compares what runs, and does not trust that a folder is there.",
        _unverified,
    ),
    Diagnosis(
        "the driver's module does not fit the kernel",
        "The kernel was upgraded, and the module was not built for it, or its headers are missing.",
        "apt-get install linux-headers-$(uname -r), dkms autoinstall, and deploy again.",
        gpu_problem("headers", "not built"),
    ),
    Diagnosis(
        "packages of the driver are on hold",
        "You, or a program, hold them, so they cannot change together.",
        "apt-mark unhold those that are named, or set nvidia_driver_branch to the one that is held.",
        _held,
    ),
    Diagnosis(
        "slow deploys",
        "SSH makes a new connection for each task, or the way to the host is long.",
        "Let SSH keep connections (ControlPersist), set pipelining = true, or deploy from a machine that is nearer.",
        _slow_deploy,
    ),
    Diagnosis(
        "check mode of a host that nothing was deployed to",
        "A task of yours needs what an earlier one would have made, and check mode makes nothing.",
        "Give that task: when: not ansible_check_mode. The roles of wanmetal can all be checked on a bare host.",
        said(r"check mode.*(no such file|not found|undefined)|ansible_check_mode.*is undefined", "deploy"),
    ),
    # -- the host
    Diagnosis(
        "an error of the GPU",
        "The driver reports an Xid: 79 is a GPU off the bus, 48, 63, 64 and 94 its memory, 13 and 31 a program.",
        "Restart the host; where it comes again, power, cooling, riser or the GPU itself is at fault.",
        said(r"NVRM: (Xid|GPU .*fallen off)", "kernel_log"),
    ),
    Diagnosis(
        "nouveau is loaded",
        "The free module keeps NVIDIA's from the GPU.",
        "Restart the host and deploy again.",
        gpu_problem("nouveau"),
    ),
    Diagnosis(
        "Secure Boot",
        "The firmware does not know the key that the module is signed with.",
        "Enrol it at the host's console (mokutil --import /var/lib/dkms/mok.pub), or switch Secure Boot off.",
        gpu_problem("mok"),
    ),
    Diagnosis(
        "nvidia-smi fails",
        "The driver does not work.",
        "See dmesg for lines with NVRM; restart the host.",
        gpu_problem("smi"),
    ),
    Diagnosis(
        "gpu",
        "wanmetal_accelerator is gpu, and no GPU is seen.",
        "Give the machine or container its GPU; ./deploy installs a driver that is missing.",
        _gpu_missing,
    ),
    Diagnosis(
        "a disk that fails",
        "The kernel reports errors of a disk or a filesystem.",
        "Save the data, look at smartctl -a, and replace the disk; then deploy: damaged releases are rebuilt.",
        said(
            r"I/O error, dev|EXT4-fs error|XFS.*(corruption|shutdown)|BTRFS (error|critical)|critical medium error",
            "kernel_log",
        ),
    ),
    Diagnosis(
        "disk",
        "The filesystem is full, or read-only.",
        "Free space: wanmetal_cache_dir may be emptied at any time.",
        _disk,
    ),
    Diagnosis(
        "memory",
        "The host has little memory for video models.",
        "Use a host with more.",
        lambda facts: [f"{facts['memory_mb']} MB"] if facts["memory_mb"] < 7500 else [],
    ),
    Diagnosis(
        "os", "It is none that wanmetal is tested on.", "Use Debian 12 or 13, Ubuntu 22.04, 24.04 or 26.04.", _system
    ),
    Diagnosis(
        "arch",
        "The locked packages are made for x86_64.",
        "Use an x86_64 host.",
        lambda facts: [facts["architecture"]] if facts["architecture"] != "x86_64" else [],
    ),
    Diagnosis(
        "systemd",
        "Services need a systemd that has started the host.",
        "Use a machine or a container that systemd has started; systemctl list-jobs says what it waits for.",
        _systemd,
    ),
    Diagnosis(
        "ports",
        "Another program uses a port that wanmetal needs.",
        "Stop it, or choose another port in the settings.",
        _ports,
    ),
    Diagnosis(
        "time",
        "Nothing keeps the clock right: certificates and signatures of S3 are refused.",
        "apt-get install systemd-timesyncd",
        lambda facts: ["it is not synchronised"] if facts["synchronised"] is False else [],
    ),
    Diagnosis(
        "services that do not run",
        "They have failed, or restart again and again; what they said last is above, or in the journal.",
        "./deploy logs shows it; correct what it names, and deploy again.",
        _failed,
    ),
    Diagnosis(
        "a deploy is at work, or programs of one",
        "Another deploy holds the host's locks.",
        "Wait until it has ended.",
        lambda facts: [f"{name}: {holder}" for name, holder in facts["locks"].items()],
    ),
    Diagnosis(
        "nothing was deployed",
        "There is no folder of releases.",
        "Run ./deploy, or correct wanmetal_root.",
        lambda facts: [] if facts["there"] else [facts["place"]["root"]],
    ),
)

MESSAGES = {
    # What preflight says begins with the setting or the thing, and tells what was found.
    "(settings)": r"settings? of .* must be fixed",
    "names": r"a name that no role knows",
    "(connection)": r"^connection$|UNREACHABLE!|Failed to connect to the host via ssh",
    "(root)": r"^(sudo|rights)$|sudo: a password is required|not in the sudoers",
    "(Python)": r"^Python$|interpreter .* was not found",
    "(ours)": r"no deploy has made|that wanmetal has not made",
    "os": r"^operating system$",
    "arch": r"^architecture$",
    "systemd": r"^init$",
    "disk": r"^filesystem\b",
    "memory": r"^memory$",
    "gpu": r"^NVIDIA GPU$",
    "ports": r"^TCP port\b",
    "time": r"^clock$",
    "sources": r"^https?://\S+$|^file:///\S+$",
    "workflows": r"^workflow \S+$",
    "its host name is unknown": r"its host name is unknown",
    "connection refused": r"found\s+connection refused",
    "no answer in time": r"no answer in time",
    "its certificate is not trusted": r"certificate is not trusted|CERTIFICATE_VERIFY_FAILED",
    "no such file on the host": r"no such file on the host",
    "HTTP status 404 and the like": r"HTTP status [45]\d\d",
    "has to be restarted before it can go on": r"has to be restarted before it can go on",
    "was upgraded without a restart": r"upgraded without a restart|Driver/library version mismatch",
    "nouveau is loaded": r"nouveau is loaded",
    "headers of the running kernel ... are missing": r"headers of the running kernel .* are missing",
    "there is no module for kernel": r"there is no module for kernel",
    "Secure Boot is on": r"Secure Boot is on",
    "a container, or WSL, whose driver is": r"a container, or WSL|in a container.*driver|WSL.*driver",
    "is not of nvidia_driver_branch": r"is not of nvidia_driver_branch",
    "no such package": r"no such package|Unable to locate package|No package matching",
    "packages are on hold": r"packages? (is|are) on hold|held broken packages",
    "found ... needed the key": r"found .* needed the key|needed\s+the key",
    "nvidia-smi fails": r"nvidia-smi fails",
    "unrecognized arguments": r"unrecognized arguments",
    "did not start ... timeout": r"did not start.*timeout|Result=timeout|Failed with result 'timeout'",
    "Found no NVIDIA driver": r"Found no NVIDIA driver",
    "the image is wrong": r"the image is wrong",
    "node pack ... could not be imported": r"node pack .* could not be imported|\(IMPORT FAILED\)",
    "node pack ... lacks node type": r"node pack .* lacks node type",
    "the kernel did not take ... network.nft": r"the kernel did not take .*network\.nft: it needs",
    "a node pack: Connection refused, or a name cannot be resolved": (
        r"Temporary failure in name resolution|Name or service not known|Errno 111\] Connection refused"
    ),
    "another job is running": r"another job is running",
    "systemd-analyze verify refuses": r"systemd-analyze verify refuses",
    "files are not as they were built, environment ... is damaged": r"not as they were built|environment .* is damaged",
    "the way back to release ... could not be kept": r"the way back to release .* could not be kept",
    "Going back to ... failed too": r"Going back to .* failed too",
    ".switch.lock is held by another deploy": r"\.switch\.lock is held by another deploy",
    "another deploy (process ...) has been building": r"another deploy \(process .* has been building",
    "its file ... is a link that leads out of the checkout": r"is a link that leads out of the checkout",
    "release ... which is not on the host": r"found +'.*', which is not on the host",
    "it was never verified, and other jobs kept it busy": r"never verified, and other jobs kept it busy",
    "Missing sudo password": r"Missing sudo password",
    "Host key verification failed": r"Host key verification failed",
    "WanVideoSampler: 'NoneType' object has no attribute 'encode'": r"'NoneType' object has no attribute 'encode'",
}
"""How each message of docs/troubleshooting.md looks in a log."""

_OF_THE_JOURNAL = {
    *("unrecognized arguments", "did not start ... timeout", "Found no NVIDIA driver"),
    *("node pack ... could not be imported", "the kernel did not take ... network.nft"),
    "a node pack: Connection refused, or a name cannot be resolved",
    "WanVideoSampler: 'NoneType' object has no attribute 'encode'",
}


def documented(text: str | None = None) -> dict[str, str]:
    """What docs/troubleshooting.md says to each message or kind of problem."""
    text = _DOCUMENT.read_text(encoding="utf-8") if text is None else text
    rows = [
        [_plain(cell.replace("\0", "|")) for cell in line.replace("\\|", "\0").strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: row[-1] for row in rows if row[0] not in {"kind", "found", "message", "the message has", "---"}}


def _plain(text: str) -> str:
    return re.sub(r"\[([^\]]+)\]\(([^)#]*)[^)]*\)", r"\1", text).replace("`", "").strip()


def messages() -> Iterator[Diagnosis]:
    """A diagnosis for each message."""
    for name, text in documented().items():
        places = ("journal", "deploy") if name in _OF_THE_JOURNAL else ("deploy",)
        yield Diagnosis(name, text, "", said(MESSAGES[name], *places))


def diagnose(facts: Facts) -> list[dict[str, Any]]:
    """What is wrong with a host, the likely cause, and the fix."""
    found = []
    for diagnosis in (*DIAGNOSES, *messages()):
        shown = list(dict.fromkeys(diagnosis.look(facts)))
        if shown:
            found.append(
                {
                    "name": diagnosis.name,
                    "found": [line[:_LONGEST] for line in shown[:_MOST_FOUND]],
                    "times": len(shown),
                    "cause": diagnosis.cause,
                    "fix": diagnosis.fix,
                }
            )
    return found


def lines(host: str, found: Sequence[Mapping[str, Any]], bundle: str) -> list[str]:
    """The findings for a terminal."""
    text = [f"{host}: {len(found) or 'no'} finding{'' if len(found) == 1 else 's'}"]
    for number, one in enumerate(found, 1):
        more = f" (and {one['times'] - len(one['found'])} more)" if one["times"] > len(one["found"]) else ""
        text += ["", f"{number}. {one['name']}", *(f"     found  {line}" for line in one["found"][:-1])]
        text += [f"     found  {one['found'][-1]}{more}", f"     cause  {one['cause']}"]
        text += [f"     fix    {one['fix']}"] if one["fix"] else []
    return [*text, "", f"support bundle, without secrets: {bundle}"] if bundle else text


def said_of(host: str, log: str) -> list[str]:
    """Lines of what the log of a deploy says of failures of a host."""
    pattern = rf"(?ms)^[^\n]*fatal: \[{re.escape(host)}(?: -> [^\]]*)?\]:.*?(?=^\d{{4}}-\d\d-\d\d |\Z)"
    # Without Ansible's setting for results as YAML, line ends of a message are escaped.
    blocks = [block.replace("\\n", "\n") for block in re.findall(pattern, log)]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
