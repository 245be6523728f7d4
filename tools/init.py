#!/usr/bin/env python3
"""Make an inventory: ./deploy init asks at most six questions, looks at the hosts and writes a folder.

Each question has a flag. With --yes, or without a terminal, what no flag gives is the default. Nothing is overwritten.
Tokens never stand in the command line: they are typed, or read from files, and kept in a file that is yours alone.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import ipaddress
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ansible/collections"))

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import choose_profile, files_of_set
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.setting_kinds import bad_folder
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.stages import wrapped

LOCAL = ("localhost", "127.0.0.1", "::1")
MAKE = {
    "try": (["wan21-t2v-1.3b"], "text to video with the small model, on any card"),
    "text-to-video": (["wan22-t2v", "wan22-optimisation-loras"], "Wan 2.2"),
    "image-to-video": (["wan22-i2v", "wan22-optimisation-loras"], "Wan 2.2"),
    "nothing": ([], "no models; yours later"),
}
"""What to make, with the sets of models for it."""

USER = r"[A-Za-z_][A-Za-z0-9_.-]*"
ADDRESS = r"\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*|[A-Za-z0-9][A-Za-z0-9_.-]*"
_JUMP = rf"({USER}@)?({ADDRESS})(:[0-9]{{1,5}})?"
_GROUPS = ("all", "ungrouped", "gpu_hosts")

LOOK = r"""
. /etc/os-release 2>/dev/null; echo "system ${PRETTY_NAME:-unknown}"
[ -d /run/systemd/system ] && echo "systemd yes"
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits 2>/dev/null | sed 's/^/gpu /'
cards=0
for card in /sys/bus/pci/devices/*; do
  case $(cat "$card/vendor" "$card/class" 2>/dev/null | tr -d '\n') in 0x10de0x03*) cards=$((cards + 1)) ;; esac
done
echo "cards $cards"
folder=$DATA
while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
df -Pk "$folder" | awk 'NR == 2 { print "free_kb", $4 }'
if [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; then echo "root yes"; fi
"""


class InitError(Exception):
    """What is wrong, with what to do."""


def say(text: str, out: TextIO | None = None) -> None:
    """Print a line, wrapped where a terminal is narrower; it is indented as its second column is."""
    if (out or sys.stdout).isatty():
        text = "\n".join(wrapped(text, shutil.get_terminal_size().columns))
    print(text, file=out, flush=True)


# -- what is asked for


@dataclass(frozen=True)
class Host:
    """A host of the inventory."""

    name: str
    address: str
    user: str = ""
    port: int = 22

    @property
    def local(self) -> bool:
        return self.address in LOCAL


def hosts_of(text: str) -> list[Host]:
    """Read hosts as people write them: [NAME=][USER@]ADDRESS[:PORT], with commas or spaces between them."""
    matches = []
    for word in re.split(r"[\s,]+", text.strip()):
        match = re.fullmatch(
            rf"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)=)?(?:(?P<user>{USER})@)?(?P<address>{ADDRESS})"
            rf"(?::(?P<port>[0-9]{{1,5}}))?",
            word,
        )
        if not match or not 0 < int(match["port"] or 22) < 65536 or not _is_address(match["address"].strip("[]")):
            raise InitError(
                f"hosts: '{word}' is no host. Write [NAME=][USER@]ADDRESS[:PORT], for example ubuntu@gpu1.example.com"
            )
        matches.append(match)
    given = {match["name"] or match["address"] for match in matches}
    free = (name for number in count(1) if (name := f"gpu{number}") not in given)
    found: list[Host] = []
    for match in matches:
        address = match["address"].strip("[]")
        name = match["name"] or ("localhost" if address in LOCAL else next(free) if _is_number(address) else address)
        if name in _GROUPS:
            raise InitError(f"hosts: '{name}' is the name of a group. Give the host another one: NAME=ADDRESS")
        found.append(Host(name, address, match["user"] or "", int(match["port"] or 22)))
    for what, keys in (
        ("named twice. Give each host a name of its own: NAME=ADDRESS", [host.name for host in found]),
        (
            "there twice under several names. Name each host once",
            ["localhost" if host.local else f"{host.address}:{host.port}" for host in found],
        ),
    ):
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise InitError(f"hosts: {', '.join(twice)} is {what}")
    return found


def _is_number(address: str) -> bool:
    return re.fullmatch(r"[0-9.]+", address) is not None or ":" in address


def _is_address(address: str) -> bool:
    """Whether it may be the name or the number of a host."""
    with contextlib.suppress(ValueError):
        return not _is_number(address) or bool(ipaddress.ip_address(address).packed)
    return False


def sets_of(text: str, known: Sequence[str]) -> list[str]:
    """Return sets of models for what is to be made; names of sets are taken, too."""
    sets: list[str] = []
    for word in filter(None, re.split(r"[\s,]+", text.strip())):
        if word not in MAKE and word not in known:
            raise InitError(
                f"what to make: '{word}' is unknown. Choose from {', '.join(MAKE)}, or a set of docs/models.md"
            )
        sets += MAKE[word][0] if word in MAKE else [word]
    return list(dict.fromkeys(sets))


def folder_of(text: str) -> str:
    """Check a folder on the hosts."""
    folder = text.rstrip("/")
    if bad_folder(folder):
        raise InitError(
            f"data folder: '{text}' cannot be used. Begin with /, use letters, digits, _, . and - alone, and take a "
            "folder of its own: not one of the system's, not somebody's home, not under /tmp"
        )
    return folder


def user_of(text: str) -> str:
    """Check a user for SSH."""
    if not re.fullmatch(USER, text):
        raise InitError(f"user: '{text}' is no name of a user. Give root, or a user with sudo, for example ubuntu")
    return text


def jump_of(text: str) -> str:
    """Check hosts to go through, as ssh takes them for ProxyJump."""
    if text and not re.fullmatch(rf"{_JUMP}(,{_JUMP})*", text):
        raise InitError(f"jump: '{text}' is no host to go through. Write [USER@]HOST[:PORT], or several with commas")
    return text


def _check_token(text: str) -> str:
    if not re.fullmatch("[!-~]+", text):
        raise InitError(
            "tokens: a token is empty, or holds spaces, line ends or letters that are not ASCII (not shown)"
        )
    return text


def tokens_of(text: str) -> dict[str, str]:
    """Read tokens as they are typed: Hugging Face's begin with hf_, another is CivitAI's."""
    found: dict[str, str] = {}
    for word in text.split():
        name = "wan_models_huggingface_token" if word.startswith("hf_") else "wan_models_civitai_token"
        _check_token(word)
        if name in found:
            raise InitError("tokens: two of one service. Hugging Face's begins with hf_, any other counts as CivitAI's")
        found[name] = word
    return found


# -- a look at the hosts


def ssh(host: Host, user: str, jump: str) -> list[str]:
    """Return the command that runs a shell on a host."""
    if host.local:
        return ["sh", "-s"]
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-p", str(host.port)]
    command += ["-J", jump] if jump else []
    who = host.user or user
    return [*command, "--", f"{who}@{host.address}" if who else host.address, "sh -s"]


def look(host: Host, user: str, jump: str, data: str) -> dict[str, Any]:
    """Ask a host what it is; ``error`` says why it does not answer."""
    try:
        script = f"DATA={data}\n{LOOK}"
        done = subprocess.run(
            ssh(host, user, jump),
            input=script,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return {"error": "no answer within 60 s"}
    except OSError as error:
        return {"error": f"ssh cannot be run: {error}"}
    if done.returncode and "system " not in done.stdout:
        return {"error": (done.stderr.strip().splitlines() or [f"ssh ended with status {done.returncode}"])[-1]}
    found: dict[str, Any] = {"gpus": []}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        if key == "gpu":  # where its driver does not run, nvidia-smi says so in the same place
            if card := re.fullmatch(r"(.+), *([0-9]+|\[.*\])", value.strip()):
                found["gpus"].append((card[1].strip(), int(card[2]) if card[2].isdigit() else 0))
        else:
            found[key] = value
    return found


def described(found: Mapping[str, Any]) -> str:
    """Say what a host is, in a line."""
    if "error" in found:
        return f"not reached: {found['error']}"
    cards = [f"{name} ({memory / 1024:.0f} GB)" if memory else name for name, memory in found["gpus"]]
    without = int(found.get("cards", 0))
    gpu = (
        ", ".join(dict.fromkeys(cards))
        if cards
        else f"{without} NVIDIA GPU(s) without a driver"
        if without
        else "no NVIDIA GPU"
    )
    count = f"{len(cards)} x " if len(cards) > 1 else ""
    parts = [found.get("system", "unknown system"), count + gpu]
    if found.get("free_kb", "").isdigit():
        parts.append(f"{int(found['free_kb']) * 1024 / 1e9:.0f} GB free")
    parts += [] if "systemd" in found else ["NOT started by systemd"]
    parts += [] if "root" in found else ["sudo asks for a password"]
    return ", ".join(parts)


def advice(host: Host, user: str, jump: str, error: str) -> str:
    """Say what helps against an error of ssh."""
    who = host.user or user
    target = f"{who}@{host.address}" if who else host.address
    options = f" -o ProxyJump={jump}" if jump else ""
    options += f" -p {host.port}" if host.port != 22 else ""
    if "Host key" in error or "host key" in error:
        return f"log in once to accept its key: ssh{options} {target}"
    if "Permission denied" in error:
        return f"bring your key there: ssh-copy-id{options} {target}"
    return f"try it by hand: ssh{options} {target}"


def profile_of(found: Sequence[Mapping[str, Any]]) -> str:
    """The profile of the smallest card, or nothing where none is known."""
    cards = [memory for one in found for _, memory in one.get("gpus", []) if memory]
    return choose_profile("auto", cards, cpu=False)[0] if cards else ""


# -- the inventory


def inventory(hosts: Sequence[Host], user: str, jump: str) -> str:
    """The text of hosts.yml."""
    listed: dict[str, Any] = {}
    for host in hosts:
        if host.local:
            listed[host.name] = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
            continue
        own = {"ansible_host": host.address} if host.name != host.address else {}
        own |= {"ansible_user": host.user} if host.user else {}
        listed[host.name] = own | ({"ansible_port": host.port} if host.port != 22 else {})
    shared = {"ansible_user": user} if user and not all(host.local or host.user for host in hosts) else {}
    shared |= {"ansible_ssh_common_args": f"-o ProxyJump={jump}"} if jump else {}
    group = {"hosts": listed, **({"vars": shared} if shared else {})}
    head = "---\n# The hosts. Made by ./deploy init; yours to change.\n"
    return head + yaml.safe_dump({"gpu_hosts": group}, sort_keys=False)


def settings(variant: str, sets: Sequence[str], data: str) -> str:
    """The text of the settings."""
    values = {"wanmetal_variant": variant, "wan_models_sets": list(sets), "wanmetal_data_dir": data}
    head = "---\n# Settings of the hosts. docs/settings.md has those that people change, and leads to all of them.\n"
    return head + yaml.safe_dump(values, sort_keys=False)


def write(folder: Path, files: Mapping[str, str], vault: str) -> None:
    """Write the folder whole, or not at all; one that is there stays as it is."""
    try:
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise InitError(f"{folder} could not be written: {error.strerror}") from error
    try:
        made.chmod(0o755)
        for name, text in files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            secret = path.name == "secrets.yml"
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if secret else 0o644), "w") as out:
                out.write(text)
            if secret and vault:
                command = ["ansible-vault", "encrypt", f"--vault-password-file={vault}", str(path)]
                if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
                    raise InitError(f"tokens: ansible-vault could not encrypt them with {vault}; nothing was written")
        made.rename(folder)  # refused by the system where the folder has anything in it
    except OSError as error:
        raise InitError(f"{folder} could not be written: {error.strerror}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


# -- the questions


def ask(
    prompt: str, given: str | None, default: str, read: Callable[[str], Any], *, quiet: bool, secret: bool = False
) -> Any:
    """Take an answer from a flag, a person or the default, until it can be read."""
    if given is not None or quiet:
        return read(default if given is None else given)
    while True:
        shown = f"{prompt}{f' [{default}]' if default else ''}: "
        try:
            answer = (getpass.getpass(shown) if secret else input(shown)).strip()
        except EOFError as error:
            print()  # the cursor is behind the question still
            raise InitError("the answers ended; nothing was written") from error
        try:
            return read(answer or default)
        except InitError as error:
            say(f"  {error}")


def token_file(path: str) -> str:
    """Read a token from a file."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig").strip()
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise InitError(f"{path} cannot be read as a token: {error}") from error
    try:
        return _check_token(text)
    except InitError as error:
        raise InitError(f"{path}: {error}") from error


def size(catalogue: Mapping[str, Any], sets: Sequence[str], profile: str) -> str:
    """What sets take, as people say it."""
    ids = dict.fromkeys(file for name in sets for file in files_of_set(catalogue, name, profile))
    files = catalogue["files"]
    total = sum(files[id_].get("bytes") or files[id_].get("about_bytes") or 0 for id_ in ids)
    return f"{total / 1e9:.0f} GB" if total else "nothing"


def choices(catalogue: Mapping[str, Any], profile: str) -> str:
    """What can be made, a line each."""
    shown = [profile] if profile else ["small", "full"]
    lines = [
        f"    {name:<15} {text} ({' to '.join(dict.fromkeys(size(catalogue, sets, one) for one in shown))})"
        if sets
        else f"    {name:<15} {text}"
        for name, (sets, text) in MAKE.items()
    ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="./deploy init",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--inventory",
        type=Path,
        default=ROOT / "my_hosts",
        metavar="FOLDER",
        help="what to write; default: my_hosts, which ./deploy then uses",
    )
    top.add_argument(
        "--hosts", metavar="LIST", help="[NAME=][USER@]ADDRESS[:PORT], with commas; localhost is this machine"
    )
    top.add_argument("--user", help="user for SSH: root, or one with sudo")
    top.add_argument("--jump", default="", metavar="[USER@]HOST", help="host to go through (ProxyJump)")
    top.add_argument("--variant", choices=["base", "wan"], help="wan has node packs for Wan video, base has none")
    top.add_argument("--make", metavar="LIST", help=f"{', '.join(MAKE)}, or sets of docs/models.md, with commas")
    top.add_argument("--data-dir", metavar="FOLDER", help="folder on the hosts for models, inputs and outputs")
    top.add_argument("--huggingface-token-file", metavar="FILE", help="file that holds the token")
    top.add_argument("--civitai-token-file", metavar="FILE", help="file that holds the token")
    top.add_argument("--vault-password-file", default="", metavar="FILE", help="encrypt the tokens with ansible-vault")
    top.add_argument("--yes", action="store_true", help="ask nothing: what no flag gives is the default")
    top.add_argument("--no-look", action="store_true", help="do not look at the hosts, and show no plan")
    return top


def looked(hosts: Sequence[Host], user: str, jump: str, data: str) -> list[dict[str, Any]]:
    """Look at all hosts at once, and say what was found."""
    print("\nLooking at the hosts")
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda host: look(host, user, jump, data), hosts))
    width = max(len(host.name) for host in hosts)
    for host, one in zip(hosts, found, strict=True):
        say(f"  {host.name:<{width}}  {described(one)}")
        if "error" in one:
            print(f"  {'':<{width}}  {advice(host, user, jump, one['error'])}")
    return found


def default_of(role: str, name: str) -> Any:
    """The default of a setting."""
    return yaml.safe_load((ROOT / f"roles/{role}/defaults/main.yml").read_text(encoding="utf-8"))[name]


def run(given: argparse.Namespace) -> int:
    try:
        folder = given.inventory.expanduser().absolute()
        there = folder.exists() or folder.is_symlink()
    except (OSError, RuntimeError) as error:
        raise InitError(f"{given.inventory} cannot be used: {error}. Give --inventory ANOTHER_FOLDER") from error
    if there:
        raise InitError(
            f"{folder} is there already, and stays as it is. Change it by hand, remove it to start over, or give "
            "--inventory ANOTHER_FOLDER"
        )
    if not folder.parent.is_dir():
        raise InitError(f"{folder.parent} is no folder. Make it, or give --inventory ANOTHER_FOLDER")
    quiet = given.yes or not sys.stdin.isatty()
    if quiet and given.hosts is None:
        raise InitError(
            "nobody can be asked for the hosts. Give --hosts LIST; ./deploy init --help shows the other flags"
        )
    catalogue = yaml.safe_load((ROOT / "files/locks/models.yml").read_text(encoding="utf-8"))

    hosts: list[Host] = ask(
        "Hosts, with spaces between them (localhost is this machine)", given.hosts, "localhost", hosts_of, quiet=quiet
    )
    jump = jump_of(given.jump)
    user = user_of(given.user) if given.user else ""
    if not given.user and not all(host.local or host.user for host in hosts):
        user = ask("User for SSH, root or one with sudo", None, getpass.getuser(), user_of, quiet=quiet)
    data: str = ask(
        "Folder on the hosts for models, inputs and outputs",
        given.data_dir,
        default_of("wanmetal", "wanmetal_data_dir"),
        folder_of,
        quiet=quiet,
    )
    found = [] if given.no_look else looked(hosts, user, jump, data)
    variant: str = ask(
        "Variant: wan has node packs for Wan video, base has none", given.variant, "wan", _variant, quiet=quiet
    )
    if given.make is None and not quiet:
        print(f"What to make\n{choices(catalogue, profile_of(found))}")
    sets: list[str] = ask(
        "One or more of these", given.make, "try", lambda text: sets_of(text, list(catalogue["sets"])), quiet=quiet
    )
    files = [path for path in (given.huggingface_token_file, given.civitai_token_file) if path]
    tokens = {}
    if given.huggingface_token_file:
        tokens["wan_models_huggingface_token"] = token_file(given.huggingface_token_file)
    if given.civitai_token_file:
        tokens["wan_models_civitai_token"] = token_file(given.civitai_token_file)
    if not files:
        tokens = ask(
            "Tokens of Hugging Face (hf_...) and CivitAI, if you have any; not shown",
            None,
            "",
            tokens_of,
            quiet=quiet,
            secret=True,
        )

    written = {
        "hosts.yml": inventory(hosts, user, jump),
        "group_vars/gpu_hosts/settings.yml": settings(variant, sets, data),
    }
    if tokens:
        head = "---\n# Tokens, for you alone. Keep this file out of repositories, or encrypt it with ansible-vault.\n"
        written["group_vars/gpu_hosts/secrets.yml"] = head + yaml.safe_dump(tokens)
    write(folder, written, given.vault_password_file)
    print(f"\nWritten to {folder}")
    for name in written:
        print(f"  {name}{', which only you can read' if name.endswith('secrets.yml') else ''}")
    more = "" if folder == ROOT / "my_hosts" else f" -i {given.inventory}"
    more += " --ask-become-pass" if any("error" not in one and "root" not in one for one in found) else ""
    more += f" --vault-password-file {given.vault_password_file}" if tokens and given.vault_password_file else ""
    if found and not any("error" in one for one in found):
        print("\nThe plan", flush=True)
        extra = ["--ask-become-pass"] if "--ask-become-pass" in more else []
        extra += [f"--vault-password-file={given.vault_password_file}"] if "--vault" in more else []
        if subprocess.run(
            ["ansible-playbook", ROOT / "playbooks/preflight.yml", "-i", folder, *extra], check=False
        ).returncode:
            print(f"\nThe hosts are not ready: correct what is said above, then run\n  ./deploy preflight{more}")
            return 0
    away = [host.name for host, one in zip(hosts, found, strict=False) if "error" in one]
    print("\nNext")
    if away:
        say(f"  correct what keeps {', '.join(away)} from answering, or {folder}/hosts.yml; then")
        print(f"  ./deploy preflight{more}")
    else:
        print(f"  ./deploy{more}")
    return 0


def _variant(text: str) -> str:
    if text not in ("base", "wan"):
        raise InitError(f"variant: '{text}' is unknown. Choose base or wan")
    return text


def main() -> int:
    try:
        return run(parser().parse_args())
    except InitError as error:
        say(f"init: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninit: interrupted; nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
