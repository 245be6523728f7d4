"""Each diagnosis of the doctor, with a host that has the illness; and secrets, which may not be in the bundle."""

from __future__ import annotations

import getpass
import io
import json
import os
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.action import doctor as action
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import evidence as module
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import state
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.evidence import Place, evidence
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import exclusive
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.redact import redact, redact_all
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.diagnoses import (
    DIAGNOSES,
    MESSAGES,
    diagnose,
    documented,
    lines,
    said_of,
)
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import Problem, listed
from ansible_collections.wanmetal.comfyui.tests.contract import house
from ansible_collections.wanmetal.comfyui.tests.trees import deep
from ansible_collections.wanmetal.comfyui.tests.unit import gpu_hosts

Ill = Callable[["Sick"], None]
NO_ANSWER = {"comfyui.service": "http://127.0.0.1:8188/system_stats"}


class Sick:
    """A host below a folder of its own, in order until something is done to it."""

    def __init__(
        self, top: Path, monkeypatch: pytest.MonkeyPatch, gpu: gpu_hosts.Host = gpu_hosts.HOSTS["eight"]
    ) -> None:
        self.patch = monkeypatch
        root, data, cache, config = map(
            Path, ("/opt/wanmetal", "/var/lib/wanmetal", "/var/cache/wanmetal", "/etc/wanmetal")
        )
        self.place = Place(root, data, cache, config, getpass.getuser(), top)
        self.units: dict[str, dict[str, str]] = {}
        self.journal = self.kernel = self.log = self.error = ""
        self.here = {"accelerator": "gpu", "allow_remote": False, "ports": [8188]}
        self.gpu(gpu)
        release = "opt/wanmetal/releases/r1"
        for name, text in {
            "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
            "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\nSwapTotal: 0 kB\n",
            "proc/self/mounts": "/dev/vda / ext4 rw 0 0\n",
            "proc/net/tcp": "  sl  local_address\n",
            f"{release}/release.json": json.dumps({"id": "r1", "lane": "cu128"}),
            "opt/wanmetal/verified.json": json.dumps({"release": "r1"}),
            "etc/wanmetal/comfyui.env": "A=b\n",
            "etc/systemd/system/comfyui.service": "[Service]\nExecStart=/bin/true\n",
            "var/cache/wanmetal/x": "",
            "var/log/x": "",
        }.items():
            self.write(name, text)
        (top / release / "venv/lib/python3.11/site-packages/torch-2.10.0+cu128.dist-info").mkdir(parents=True)
        (top / "opt/wanmetal/current").symlink_to("releases/r1")
        for name in ("home", "input", "output", "temp", "user"):
            (top / "var/lib/wanmetal" / name).mkdir(parents=True)
        self.model("models/vae/good.safetensors", whole())
        self.unit("comfyui.service")
        monkeypatch.setattr(state, "clock_error_us", lambda: 0)

    def gpu(self, host: gpu_hosts.Host) -> None:
        shutil.rmtree(self.place.top / "sys", ignore_errors=True)
        gpu_hosts.make(self.place.top, host)

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.place.at(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def model(self, name: str, content: bytes) -> None:
        path = self.place.at("var/lib/wanmetal") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def unit(self, name: str, **values: str) -> None:
        self.units[name] = {"Id": name, "ActiveState": "active", "SubState": "running", "Result": "success", **values}

    def process(self, command: str, unit: str) -> None:
        self.write("proc/4711/cmdline", command.replace(" ", "\0"))
        self.write("proc/4711/cgroup", f"0::/system.slice/{unit}\n")

    def facts(self) -> tuple[dict[str, Any], dict[str, str]]:
        shown = "\n\n".join("\n".join(f"{key}={value}" for key, value in unit.items()) for unit in self.units.values())
        program = '#!/bin/sh\ncase "$*" in\n{}esac\n'
        cases = {"*SystemState*": "Version=252\nSystemState=running", "*show*": shown, "*": "state"}
        self.write("usr/bin/systemctl", program.format(answers(cases)), 0o755)
        self.write("usr/bin/journalctl", program.format(answers({"*--dmesg*": self.kernel, "*": self.journal})), 0o755)
        found = evidence(self.place, NO_ANSWER, lambda _url: self.error)
        facts = found["facts"]
        facts["deploy"], facts["deploy_all"] = said_of("gpu1", self.log), self.log.splitlines()
        facts["place"] = {"root": str(self.place.root), "data": str(self.place.data), **self.here}
        return facts, found["files"]

    def found(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in diagnose(self.facts()[0])}


def answers(cases: dict[str, str]) -> str:
    return "".join(f"{pattern}) printf '%s\\n' {shlex.quote(text)} ;;\n" for pattern, text in cases.items())


def whole(length: int = 8) -> bytes:
    header = json.dumps({"a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(length)


@pytest.fixture
def sick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sick:
    return Sick(tmp_path, monkeypatch)


def in_log(place: str, text: str) -> Ill:
    return lambda sick: setattr(sick, place, f"2026-11-27T14:00:00+0000 gpu1 program[1]: {text}")


def in_journal(*texts: str) -> list[Ill]:
    return [in_log("journal", text) for text in texts]


def in_kernel(*texts: str) -> list[Ill]:
    return [in_log("kernel", text) for text in texts]


def with_gpu(name: str) -> list[Ill]:
    def ill(sick: Sick) -> None:
        shutil.rmtree(sick.place.at("proc/driver"), ignore_errors=True)
        sick.place.at("usr/bin/nvidia-smi").unlink(missing_ok=True)
        sick.place.at("usr/sbin/modinfo").unlink(missing_ok=True)
        shutil.rmtree(sick.place.at(f"lib/modules/{gpu_hosts.KERNEL}"), ignore_errors=True)
        sick.gpu(gpu_hosts.HOSTS[name])

    return [ill]


def listens(address: str, port: int) -> Ill:
    def ill(sick: Sick) -> None:
        sick.write("proc/net/tcp", f"  sl\n 0: {address}:{port:04X} 00000000:0000 0A 0:0 0:0 0 0 0 99 1\n")
        (sick.place.at("proc") / "50/fd").mkdir(parents=True)
        (sick.place.at("proc") / "50/fd/3").symlink_to("socket:[99]")
        sick.write("proc/50/comm", "nginx\n")
        sick.write("proc/50/cgroup", "0::/system.slice/nginx.service\n")
        sick.write("proc/50/cmdline", "nginx")

    return ill


def filesystem(**values: Any) -> Ill:
    room = {"mount": "/", "device": 1, "free_bytes": 10**12, "free_inodes": 10**6, "read_only": False, **values}
    return lambda sick: sick.patch.setattr(state, "filesystem", lambda _path: room)


def package(name: str) -> Ill:
    folder = "opt/wanmetal/current/venv/lib/python3.11/site-packages"
    return lambda sick: sick.place.at(f"{folder}/{name}.dist-info").mkdir()


def other_torch(sick: Sick) -> None:
    folder = sick.place.at("opt/wanmetal/current/venv/lib/python3.11/site-packages")
    (folder / "torch-2.10.0+cu128.dist-info").rename(folder / "torch-2.11.0+cpu.dist-info")


def two_numpys(sick: Sick) -> None:
    for name in ("numpy-1.26.4", "numpy-2.2.6"):
        package(name)(sick)


def no_folder(sick: Sick) -> None:
    sick.place.at("var/lib/wanmetal/temp").rmdir()
    sick.write("var/lib/wanmetal/temp", "")


def failed_with(text: str) -> str:
    stamp = "2026-11-27 14:55:04,564 p=1 u=root n=ansible INFO|"
    body = "\n".join(f"        {line}" for line in text.splitlines())
    return f"{stamp} TASK [x]\n{stamp} fatal: [gpu1]: FAILED! => \n    msg: |-\n{body}\n\n{stamp} PLAY RECAP\n"


def log_of(text: str) -> Ill:
    return lambda sick: setattr(sick, "log", failed_with(text))


def whole_log(text: str) -> Ill:
    return lambda sick: setattr(sick, "log", text)


def verified(**record: str) -> Ill:
    return lambda sick: sick.write("opt/wanmetal/verified.json", json.dumps(record))


def later(sick: Sick) -> None:
    os.utime(sick.place.at("opt/wanmetal/verified.json"), (1, 1))


def held_lock(sick: Sick) -> None:
    lock = exclusive(sick.place.at("opt/wanmetal/.switch.lock"))
    lock.__enter__()
    sick.patch.setattr(sick, "kept", lock, raising=False)


def kept(name: str, **values: str) -> Ill:
    return lambda sick: sick.unit(name, **values)


def mixed_branches(sick: Sick) -> None:
    sick.write(
        "var/lib/dpkg/status",
        gpu_hosts.dpkg("580.95.05", "libnvidia-compute-580") + gpu_hosts.dpkg("570.1", "nvidia-driver-570"),
    )


ILL: dict[str, list[Ill]] = {
    "weights of a pack are missing": in_journal(
        "Exception: HTTP Error 404: Not Found while loading rife47.pth",
        "Failed to load https://github.com/x/film_net_fp32.pt: Connection refused",
        "huggingface.co/yzd/x.pth: 404 Client Error: Not Found",
    ),
    "SageAttention is built without a GPU": in_journal(
        "RuntimeError: No target compute capabilities. Set TORCH_CUDA_ARCH_LIST",
        "CUDA_HOME environment variable is not set",
    ),
    "SageAttention lacks this GPU's architecture": in_journal(
        "AssertionError: SM89 kernel is not available. Make sure you GPUs with compute capability 8.9.",
        "ValueError: Unsupported CUDA architecture: sm120",
    ),
    "black or noisy frames": in_journal("nodes.py:1594: RuntimeWarning: invalid value encountered in cast"),
    "torch has no kernels for this GPU": in_journal(
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation.",
    ),
    "the environment was changed by hand": [
        other_torch,
        two_numpys,
        package("torch-2.9.0+cu128"),
    ],
    "torch without CUDA": in_journal("AssertionError: Torch not compiled with CUDA enabled"),
    "a package of another numpy": in_journal(
        "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.2.6",
        "ValueError: numpy.dtype size changed",
    ),
    "a miner runs": [
        lambda sick: sick.process("/opt/.x/xmrig -o pool:3333", "comfyui.service"),
        lambda sick: sick.process("python3 -o stratum+tcp://pool:3333", "cron.service"),
    ],
    "a program of ComfyUI's user that is not one of wanmetal's services": [
        lambda sick: sick.process("/opt/.x/kworker", "cron.service")
    ],
    "a service that others can reach": [listens("00000000", 8188), listens("0100000A", 8888)],
    "memory of the system has run out": [
        *in_kernel(
            "Out of memory: Killed process 77 (python) total-vm:1kB", "Memory cgroup out of memory: Killed process 1"
        ),
        kept("comfyui.service", Result="oom-kill"),
        kept("comfyui-api.service", Result="signal", ExecMainStatus="9"),
    ],
    "memory of the GPU has run out": in_journal(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "Allocation on device 0 would exceed"
    ),
    "a slow start": [
        kept("comfyui.service", ExecMainStartTimestampMonotonic="1000000", ActiveEnterTimestampMonotonic="131000000")
    ],
    "models do not outlive a restart": [
        lambda sick: sick.write(
            "proc/self/mounts", f"/dev/vda / ext4 rw 0 0\ntmpfs {sick.place.at(sick.place.data)} tmpfs rw 0 0\n"
        ),
    ],
    "a model that is damaged": [
        lambda sick: sick.model("models/a.safetensors", whole(3)),
        lambda sick: sick.model("models/a.safetensors", whole()[:9]),
        lambda sick: sick.model("models/a.safetensors", b"<!DOCTYPE html><html>"),
        lambda sick: sick.model("models/deep/er/a.pth", b"version https://git-lfs.github.com/spec/v1\n"),
        lambda sick: sick.model("models/a.gguf", b""),
        lambda sick: sick.model("models/a.safetensors", b"\x10\0\0\0\0\0\0\0[1, 2, 3, 4, 5] "),
    ],
    "ComfyUI cannot read a model": in_journal(
        "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
        "_pickle.UnpicklingError: invalid load key, '<'.",
    ),
    "a download that is not done": [lambda sick: sick.model("models/.a.safetensors.12ab.part", b"x")],
    "folders that ComfyUI cannot write to": [
        lambda sick: sick.place.at("var/lib/wanmetal/output").chmod(0o555),
        no_folder,
    ],
    "a file that a service may not read or write": in_journal(
        "PermissionError: [Errno 13] Permission denied: '/srv/x'", "OSError: [Errno 30] Read-only file system: '/x'"
    ),
    "outputs in folders of their own": [lambda sick: sick.write("var/lib/wanmetal/output/video/x_00001_.mp4", "x")],
    "a service that hangs": [lambda sick: setattr(sick, "error", "timed out")],
    "a workflow that does not fit this ComfyUI": in_journal("Failed to validate prompt for output 9:"),
    "no compiler for Triton": in_journal(
        "fatal error: Python.h: No such file or directory", "ModuleNotFoundError: No module named 'triton'"
    ),
    "the driver was upgraded without a restart": with_gpu("mismatch"),
    "packages of several driver branches": [mixed_branches],
    "our files are changed by something else": [later],
    "sudo asks for a password on your own machine": [
        whole_log("fatal: [gpu1 -> localhost]: FAILED! => sudo: a password is required\n")
    ],
    "too many requests": [
        *in_journal("models: https://civitai.com/api: HTTP status 429"),
        log_of("API rate limit exceeded for 203.0.113.1"),
    ],
    "a condition that is no boolean": [
        log_of(
            "Conditional result (True) was derived from value of type 'str'. Conditionals must have a boolean result."
        )
    ],
    "Ansible does not find the collection": [
        whole_log("ERROR! the role 'wanmetal.comfyui.comfyui' was not found in /x"),
        whole_log("ERROR! couldn't resolve module/action 'wanmetal.comfyui.canary'."),
    ],
    "another release runs than the one that was verified": [
        verified(release="r0"),
        lambda sick: sick.place.at("opt/wanmetal/verified.json").unlink(),
        lambda sick: sick.place.at("opt/wanmetal/current").unlink(),
        lambda sick: sick.place.at("opt/wanmetal/previous").symlink_to("releases/gone"),
    ],
    "the driver's module does not fit the kernel": [
        lambda sick: with_gpu("no headers")[0](sick),
    ],
    "packages of the driver are on hold": with_gpu("one"),
    "slow deploys": [whole_log("Stages\n  total        312.4 s  nothing changed\n")],
    "check mode of a host that nothing was deployed to": [log_of("in check mode: /etc/x: No such file or directory")],
    "an error of the GPU": in_kernel("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."),
    "nouveau is loaded": with_gpu("nouveau"),
    "Secure Boot": with_gpu("secure boot"),
    "nvidia-smi fails": with_gpu("driver broken"),
    "gpu": with_gpu("no gpu"),
    "a disk that fails": in_kernel(
        "I/O error, dev nvme0n1, sector 1 op 0x0:(READ)", "EXT4-fs error (device vda1): ext4_find"
    ),
    "disk": [filesystem(free_bytes=5 * 10**8), filesystem(free_inodes=10), filesystem(read_only=True)],
    "memory": [lambda sick: sick.write("proc/meminfo", "MemTotal: 2000000 kB\n")],
    "os": [lambda sick: sick.write("etc/os-release", "ID=fedora\nVERSION_ID=44\n")],
    "arch": [lambda sick: sick.patch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))],
    "systemd": [lambda sick: sick.patch.setattr(module, "_systemd", lambda _run: {"version": None, "state": None})],
    "ports": [listens("0100007F", 8188)],
    "time": [lambda sick: sick.patch.setattr(state, "clock_error_us", lambda: 16_000_000)],
    "services that do not run": [
        kept("comfyui-api.service", ActiveState="failed", SubState="failed", Result="exit-code"),
        kept("comfyui.service", ActiveState="activating", SubState="auto-restart", NRestarts="7"),
    ],
    "a deploy is at work, or programs of one": [held_lock],
    "nothing was deployed": [lambda sick: shutil.rmtree(sick.place.at("opt/wanmetal"))],
}
CASES = [
    pytest.param(name, ill, id=f"{name} {number}") for name, ills in ILL.items() for number, ill in enumerate(ills)
]


def test_a_host_in_order_has_nothing(sick: Sick) -> None:
    assert sick.found() == {}
    assert lines("gpu1", [], "") == ["gpu1: no findings", ""][:1]


def test_every_diagnosis_has_an_illness_here() -> None:
    assert set(ILL) == {diagnosis.name for diagnosis in DIAGNOSES}
    assert len(DIAGNOSES) == len({diagnosis.name for diagnosis in DIAGNOSES})


@pytest.mark.parametrize(("name", "ill"), CASES)
def test_an_illness_is_found(name: str, ill: Ill, sick: Sick) -> None:
    ill(sick)
    found = sick.found()
    assert name in found, found
    assert found[name]["found"], "it shows why"
    assert found[name]["cause"], "it says why"
    assert found[name]["fix"], "it says what to do"
    assert len(found) <= 4, "and not everything else"


# -- messages of docs/troubleshooting.md

KINDS = {
    "was upgraded without a restart": "NVIDIA GPU\n  found   580.1 is installed: it was upgraded without a restart",
    "the image is wrong": "ComfyUI is not healthy: the image is wrong: at (1, 2) it is #000000, #ff0000 was expected",
    ".switch.lock is held by another deploy": "/opt/wanmetal/.switch.lock is held by another deploy (process 1)",
    "(settings)": listed(
        [Problem("settings", "comfyui_port", "99999", "a port", "x")], "1 setting of gpu1 must be fixed first."
    ),
    "names": "comfyui_prot\n  found   a name that no role knows",
    "(connection)": "connection\n  found   ssh: connect to host 10.0.0.1 port 22: Connection refused",
    "(root)": "sudo\n  found   sudo asks for a password",
    "(Python)": "Python\n  found   none",
    "(ours)": "wanmetal_user\n  found   an account that no deploy has made",
    "os": "operating system\n  found   Fedora",
    "arch": "architecture\n  found   aarch64",
    "systemd": "init\n  found   another than systemd",
    "disk": "filesystem /\n  found   1 GB",
    "memory": "memory\n  found   1 GB",
    "gpu": "NVIDIA GPU\n  found   none",
    "ports": "TCP port 8188\n  found   held by nginx",
    "time": "clock\n  found   not synchronised",
    "sources": "https://github.com/\n  found   no answer in time",
    "workflows": "workflow mine.json\n  found   x",
    "the kernel did not take ... network.nft": "the kernel did not take /etc/wanmetal/network.nft: it needs nf_tables",
    "connection refused": "https://x.example/\n  found   connection refused",
    "HTTP status 404 and the like": "https://x.example/\n  found   HTTP status 404",
    "a container, or WSL, whose driver is": "NVIDIA GPU\n  found   a container, or WSL, whose driver is 550",
    "found ... needed the key": "key\n  found   AAAA\n  needed  the key BBBB",
    "did not start ... timeout": "comfyui.service did not start: Result=timeout",
    "a node pack: Connection refused, or a name cannot be resolved": "pack: [Errno 111] Connection refused",
    "files are not as they were built, environment ... is damaged": "environment comfyui-1 is damaged: x",
    "release ... which is not on the host": "release\n  found   'r9', which is not on the host\n  needed  one of: r1",
    "another deploy (process ...) has been building": "another deploy (process 9, since 14:00) has been building",
}


def test_every_message_of_the_documents_is_known() -> None:
    assert set(documented()) == set(MESSAGES)
    assert all(len(text) > 10 for text in documented().values())
    assert "](" not in "".join(documented().values())


@pytest.fixture(scope="module")
def of_a_host(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of a host that is in order."""
    with pytest.MonkeyPatch.context() as patch:
        return Sick(tmp_path_factory.mktemp("in-order"), patch).facts()[0]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_in_the_log_is_found(name: str, of_a_host: dict[str, Any]) -> None:
    log = failed_with(KINDS.get(name, name.replace("...", "x")))
    facts = {**of_a_host, "deploy": said_of("gpu1", log), "deploy_all": log.splitlines()}
    found = {one["name"]: one for one in diagnose(facts)}
    assert name in found, found
    assert found[name]["cause"] == documented()[name]


def test_messages_are_those_that_the_project_says() -> None:
    """A message that is worded anew has to be so in the documents, too."""
    others = {
        "Found no NVIDIA driver",
        "Missing sudo password",
        "Host key verification failed",
        "unrecognized arguments",
        "WanVideoSampler: 'NoneType' object has no attribute 'encode'",
    }
    text = " ".join(
        path.read_text()
        for folder in ("plugins", "roles")
        for path in sorted((house.ROOT / folder).rglob("*"))
        if path.suffix in {".py", ".yml", ".j2"} and path.name != "diagnoses.py"
    )
    text = re.sub(r"[\"'`]\s*\n\s*f?[\"'`]|\s+", " ", text)
    parts = [
        part.strip(" ,:").removeprefix(".")
        for name in set(MESSAGES) - set(KINDS) - others
        for part in name.split("...")
    ]
    assert [part for part in parts if part not in text] == [], "nothing says these"


def test_a_log_without_ansible_s_yaml_and_other_hosts() -> None:
    log = (
        'fatal: [gpu2]: FAILED! => {"msg": "x\\nmemory\\n  found  1"}\n2026-11-27 a\n'
        'fatal: [gpu1]: FAILED! => {"msg": "y\\nclock\\n"}\n'
    )
    assert "clock" in said_of("gpu1", log)
    assert "memory" not in said_of("gpu1", log)
    assert said_of("gpu", log) == []


def test_the_last_lines_are_shown_and_counted(sick: Sick) -> None:
    sick.journal = "\n".join(f"14:0{n} CUDA out of memory" for n in range(9))
    [one] = diagnose(sick.facts()[0])
    assert [line[:5] for line in one["found"]] == ["14:08", "14:07", "14:06"]
    assert "(and 6 more)" in "\n".join(lines("gpu1", [one], "b.tar.gz"))


def test_folders_without_an_end_and_names_that_are_no_utf_8_are_looked_at(sick: Sick) -> None:
    output = sick.place.at("var/lib/wanmetal/output")
    (output / "a" / os.fsdecode(b"\xff")).mkdir(parents=True)
    (output / "a" / os.fsdecode(b"\xff") / "b\n.mp4").touch()
    with deep(output, "c.mp4"):
        facts, _files = sick.facts()
    assert facts["outputs_below"] == ["output/a/\ufffd/b .mp4"]


def test_links_of_a_service_lead_root_nowhere(sick: Sick) -> None:
    secret = sick.place.at("root/secret.safetensors")
    sick.write("root/secret.safetensors", "<html>")
    (sick.place.at("var/lib/wanmetal/models") / "a.safetensors").symlink_to(secret)
    (sick.place.at("var/lib/wanmetal/models") / "folder").symlink_to(secret.parent)
    assert sick.found() == {}
    shutil.rmtree(sick.place.at("var/lib/wanmetal/models"))
    sick.place.at("var/lib/wanmetal/models").symlink_to(secret.parent)
    assert [one["path"] for one in sick.facts()[0]["models"] if "secret" in one["path"]] in (
        [],
        ["models/secret.safetensors"],
    )


# -- the bundle

HUGGING, CIVITAI = "hf_" + "aB3" * 11, "0123456789abcdef" * 2
S3_ID, S3_SECRET = "AKIA" + "Q7W8E9R1" * 2, "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLE01"
JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
PEM = "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEpAIBAAKC\nqrstuv\n-----END " + "RSA PRIVATE KEY-----"
# Each with what of it may not be there.
PLANTED = {
    f"HF_TOKEN={HUGGING}": HUGGING,
    f"https://civitai.com/api/download/models/1?type=Model&token={CIVITAI}": CIVITAI,
    f"Authorization: Bearer {JWT}": JWT.split(".")[1],
    "Authorization: Basic dXNlcjpodW50ZXIy": "dXNlcjpodW50ZXIy",
    "{'Authorization': 'Bearer plain-words-here'}": "plain-words-here",
    'headers={"X-Api-Key": "kkk-111-zzz"}': "kkk-111-zzz",
    "git clone https://jane:correct-horse@git.example.com/x.git": "correct-horse",
    "https://ghp0token@git.example.com/x.git": "ghp0token",
    "index-url = https://packages:p%40ss9@packages.example.com/simple": "p%40ss9",
    f"AWS_ACCESS_KEY_ID={S3_ID} AWS_SECRET_ACCESS_KEY={S3_SECRET}": S3_SECRET,
    f"botocore: credentials {S3_ID} and {S3_SECRET} refused": S3_SECRET,
    f"key id {S3_ID} is unknown": S3_ID,
    "https://b.s3.example/x.mp4?X-Amz-Signature=abc123def&X-Amz-Credential=CCCC%2F2026": "abc123def",
    "GET /view?filename=a&sig=zzzyyy1 HTTP/1.1": "zzzyyy1",
    "mysql --password hunter22 -h db": "hunter22",
    "curl -u admin:letmein9 http://x": "letmein9",
    "wan_models_huggingface_token: my plain words": "my plain words",
    "ansible_become_password: 'it''s 4 secret'": "4 secret",
    "vault_password: |\n  first-line-7\n  second-line-8\nnext: 1": "second-line-8",
    '"db": {"password": "a\\"b-quoted-9"}': "b-quoted-9",
    PEM: "MIIEpAIBAAKC",
    "Cookie: session=abcdefg; other=hijklmn": "hijklmn",
    "machine git.example.com login jane password netrc-pw-1": "netrc-pw-1",
    "the password is Tr0ub4dor": "Tr0ub4dor",
    "RUNPOD_API_KEY = rpa_" + "Q" * 36: "Q" * 36,
    "github_pat_" + "1A" * 20: "1A" * 20,
    "JUPYTER_TOKEN=" + "ab12" * 12: "ab12" * 12,
    "ssh -o x --token=t0k-in-arg run": "t0k-in-arg",
    "HANDLER_WEBHOOK_SECRET: !unsafe s3cr3t-un": "s3cr3t-un",
    "secret " + "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY": "K7MDENG",
    '{\\"password\\": \\"in-a-string\\"}': "in-a-string",
    "sshpass -p s-h-pass ssh gpu1": "s-h-pass",
    "mysqldump -u root -pdump-pw db": "dump-pw",
    "api key: spaced-key": "spaced-key",
    "password for db is: hunter2x": "hunter2x",
    "HUGGINGFACE_HUB_TOKEN hub9token": "hub9token",
    "https://hooks.slack.com/services/T0/B0/short": "T0/B0",
    "AccountKey=acc-key==;Endpoint=x": "acc-key",
}
HARMLESS = (
    "2026-11-27T14:55:04+0000 gpu1 python[1]: got prompt, 30 tokens, tokenizer: t5, author: kijai",
    "release 0.33.0-b760b7fe8d of f8b981ae9a5676311624bbafa636a1874db79459",
    "sha256 " + "ab12" * 16,
    "/var/lib/wanmetal/models/diffusion_models/Wan2_1-T2V-1_3B_fp8_e4m3fn_scaled_KJ.safetensors: 1435 MB",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "http://127.0.0.1:8188/system_stats answers with HTTP status 404",
    "max_tokens: 77, new_token: 5",
    "python main.py --port 8188 --listen 127.0.0.1",
    "NVRM: Xid (PCI:0000:01:00): 79, pid=4711, GPU has fallen off the bus.",
    "Basic authentication is off",
    'File "/opt/wanmetal/releases/0.3.75-bebe89f0fb/ComfyUI/server.py", line 22, in <module>',
)


@pytest.mark.parametrize(("text", "secret"), PLANTED.items())
def test_a_secret_is_taken_out(text: str, secret: str) -> None:
    for around in ("{}", "gpu1 python[1]: {}", "gpu1 python[1]: failed ({}) here"):
        assert secret not in redact(around.format(text)), around


@pytest.mark.parametrize("text", HARMLESS)
def test_what_helps_stays(text: str) -> None:
    assert redact(text) == text


def test_data_is_redacted_by_its_keys() -> None:
    given = {"password": "x y", "deep": [{"api_key": "k", "name": "n"}], "count": 3, "token": ""}
    assert redact_all(given) == {
        "password": "<redacted>",
        "deep": [{"api_key": "<redacted>", "name": "n"}],
        "count": 3,
        "token": "",
    }


def test_no_secret_is_in_the_bundle(sick: Sick, tmp_path: Path) -> None:
    """In every place that the doctor reads; the values that the host's settings name also where they stand alone."""
    alone = {
        "comfyui.env": ("MY_LOGIN_PASSWORD", "plain-horse"),
        "handler.env": ("HANDLER_S3_SECRET_KEY", "abc/def+ghi"),
        "jupyterlab.env": ("JUPYTER_TOKEN", "sesame-open"),
        "comfyui-api.env": ("SOMETHING", "R4nd0mthing"),
    }
    for name, (key, value) in alone.items():
        sick.write(f"etc/wanmetal/{name}", f"{key}={value}\n" + "".join(f"{text}\n" for text in PLANTED), 0o600)
    sick.write(
        "var/lib/wanmetal/models-state/job.json", json.dumps({"tokens": {"huggingface.co": "plain-token-of-job"}})
    )
    sick.write("root/.netrc", "machine x login jane password plain-netrc\n")
    sick.write("root/.git-credentials", "https://jane:plain-git@git.example.com\n")
    sick.write("root/.cache/huggingface/token", "plain-hub-token\n")
    sick.write("etc/systemd/system/comfyui.service.d/own.conf", "[Service]\nEnvironment=DB_PASSWORD=plain-unit FOO=b\n")
    values = [value for _key, value in alone.values()]
    values += ["plain-token-of-job", "plain-netrc", "plain-git", "plain-hub-token", "plain-unit"]
    everything = "\n".join([*PLANTED, *(f"someone wrote {value} here" for value in values), "abc%2Fdef%2Bghi"])
    for name in ("extra_model_paths.yaml", "network.nft", "comfyui.generation"):
        sick.write(f"etc/wanmetal/{name}", everything)
    sick.write("opt/wanmetal/current/release.json", json.dumps({"lane": "cu128", "password": "q-q-q", "x": everything}))
    sick.process(f"xmrig {HUGGING} --password hunter22 plain-horse", "cron.service")
    sick.write("usr/bin/nvidia-smi", f"#!/bin/sh\ncat << 'END'\n{everything}\nEND\nexit 1\n", 0o755)
    sick.unit("comfyui.service", DropInPaths=everything.replace("\n", " "))
    sick.journal = sick.kernel = everything
    sick.error = f"refused: {everything}"
    facts, files = sick.facts()
    bundle = tmp_path / "support.tar.gz"
    action._write(bundle, {**files, "doctor.txt": "\n".join(lines("gpu1", diagnose(facts), ""))})
    assert bundle.stat().st_mode & 0o777 == 0o600
    with tarfile.open(fileobj=io.BytesIO(bundle.read_bytes())) as archive:
        opened = {entry.name: archive.extractfile(entry) for entry in archive.getmembers()}
        texts = {name: stream.read().decode() for name, stream in opened.items() if stream}
    for name in ("journal.txt", "kernel.txt", "facts.json", "gpu.txt", "units.txt", "config.txt", "doctor.txt"):
        assert texts[f"support/{name}"]
    assert "MY_LOGIN_PASSWORD=<redacted>" in texts["support/settings.txt"]
    found = {
        name: [value for value in (*PLANTED.values(), *values, "abc%2Fdef%2Bghi", "q-q-q") if value in text]
        for name, text in texts.items()
    }
    assert {name: secrets for name, secrets in found.items() if secrets} == {}
    assert not [value for value in (*PLANTED.values(), *values) if value in json.dumps(facts)], "what Ansible may log"
