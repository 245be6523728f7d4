#!/usr/bin/env python3
"""Throw-away hosts to practise on: systemd containers that are reached over SSH, like any other host.

It needs a Docker engine, which it installs and starts where it may, and nothing beyond Python's own library.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
REPOSITORY = "wanmetal-lab"
LABEL = "wanmetal.lab"  # on a host: the state folder it belongs to; on an image: the base it was made from
USER = "ops"
STORE = "/srv/wanmetal"  # uv links packages only within one mount, so cache and releases share this one


@dataclass(frozen=True)
class System:
    """A distribution that hosts can be made of."""

    image: str
    codename: str


SYSTEMS = {
    "debian12": System("debian:12", "bookworm"),
    "debian13": System("debian:13", "trixie"),
    "ubuntu2204": System("ubuntu:22.04", "jammy"),
    "ubuntu2404": System("ubuntu:24.04", "noble"),
    "ubuntu2604": System("ubuntu:26.04", "resolute"),
}

# What a systemd container needs, short of --privileged.
CONTAINER_SETTINGS = (
    "--cap-add=SYS_ADMIN",
    "--cap-add=NET_ADMIN",
    "--cap-add=SYS_PTRACE",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--cgroupns=host",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    "--tmpfs=/tmp:exec",
)

PROXY_NAMES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
INDEX_NAMES = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_INSECURE_HOST",
)
CERTIFICATE_FOLDERS = (
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
    "/etc/ca-certificates/trust-source/anchors",
)
CERTIFICATE_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
PIP_CONFIGURATIONS = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


class LabError(Exception):
    """Something is missing or went wrong; the message says what to do."""


def say(message: str) -> None:
    text = f"lab: {message}"
    if sys.stderr.isatty():
        columns = shutil.get_terminal_size().columns - 1
        text = textwrap.fill(text, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str, every: float = 20.0) -> Iterator[None]:
    """Say from time to time that something is still at work."""
    over, begun = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(every):
            say(f"... {what}: {time.monotonic() - begun:.0f} s so far")

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


# ------------------------------------------------------------------------------------------ pure logic


def names_this_machine(value: str) -> bool:
    """Whether a setting holds an address that means something else inside a container."""
    for word in re.split(r"[\s,]+", value):
        address = word if "://" in word else f"//{word}"
        with contextlib.suppress(ValueError):
            parts = urlsplit(address)
            host = parts.hostname or ""
            if parts.scheme == "file" or host in ("localhost", "::1") or host.startswith("127."):
                return True
    return False


def host_environment(environ: Mapping[str, str], pip_index: str, *, own_certificates: bool) -> dict[str, str]:
    """The proxy, index and certificate settings that a host takes over from this machine."""
    names = [*PROXY_NAMES, *(name.upper() for name in PROXY_NAMES), *INDEX_NAMES]
    found = {name: environ[name].strip() for name in names if environ.get(name, "").strip()}
    if pip_index:
        found.setdefault("PIP_INDEX_URL", pip_index)
    if "PIP_INDEX_URL" in found and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & found.keys():
        found["UV_DEFAULT_INDEX"] = found["PIP_INDEX_URL"]
    kept = {name: value for name, value in found.items() if name.lower() == "no_proxy" or not names_this_machine(value)}
    if own_certificates:
        bundle = CERTIFICATE_BUNDLES[0]
        kept |= {"SSL_CERT_FILE": bundle, "REQUESTS_CA_BUNDLE": bundle}
    return dict(sorted(kept.items()))


def distribution_sources(targets: str, codename: str) -> list[tuple[str, str, str]]:
    """(address, suite, component) of the distribution's own archive, from apt's lines of the same.

    Other vendors use the bare code name as their suite too, but only the archive has `-updates` beside it.
    """
    found = {(words[0], words[1], words[2]) for words in map(str.split, targets.splitlines()) if len(words) == 3}
    archives = {uri for uri, suite, _ in found if suite == f"{codename}-updates"}
    return sorted(
        (uri, suite, component)
        for uri, suite, component in found
        if (suite == codename and uri in archives) or suite in (f"{codename}-updates", f"{codename}-security")
    )


def package_settings(dump: str) -> str:
    """The lines of `apt-config dump` that decide how packages are fetched."""
    wanted = re.compile(r"Acquire::(Check-[A-Za-z-]+|https?::(.*::)?Proxy(::.*)?) ")
    return "".join(
        f"{line}\n"
        for line in dump.splitlines()
        if wanted.match(line) and not names_this_machine(line.split(" ", 1)[1].strip('";'))
    )


def digest(files: Mapping[str, bytes]) -> str:
    whole = hashlib.sha256()
    for path, content in sorted(files.items()):
        whole.update(f"{path}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()[:12]


def archive(files: Mapping[str, tuple[bytes, int, int]]) -> bytes:
    """A tar of path -> (content, mode, owner); a path that ends in / is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, (content, mode, owner) in sorted(files.items()):
            entry = tarfile.TarInfo(path.rstrip("/"))
            entry.type = tarfile.DIRTYPE if path.endswith("/") else tarfile.REGTYPE
            entry.size, entry.mode, entry.uid, entry.gid = len(content), mode, owner, owner
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def container_name(state: Path, name: str) -> str:
    """Two labs on one engine do not meet."""
    return f"{REPOSITORY}-{hashlib.sha256(str(state).encode()).hexdigest()[:6]}-{name}"


def create_arguments(state: Path, name: str, image: str) -> list[str]:
    return [
        "create",
        f"--name={container_name(state, name)}",
        f"--hostname={name}",
        f"--label={LABEL}={state}",
        f"--label={LABEL}.name={name}",
        *CONTAINER_SETTINGS,
        f"--volume={state}/store:{STORE}",
        "--publish=127.0.0.1::22",
        image,
    ]


def ssh_options(state: Path) -> dict[str, str]:
    return {
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(state / "known_hosts"),
    }


def ssh_config(state: Path, ports: Mapping[str, int]) -> str:
    lines = ["# Made by lab.py for: ssh -F THIS_FILE NAME"]
    for name, port in sorted(ports.items()):
        lines += [f"Host {name}", "  HostName 127.0.0.1", f"  Port {port}", f"  User {USER}"]
        lines += [f'  IdentityFile "{state}/key"']
        lines += [f'  {option} "{value}"' for option, value in ssh_options(state).items()]
    return "\n".join(lines) + "\n"


def inventory(
    state: Path, ports: Mapping[str, int], environment: Mapping[str, str], group_name: str = "gpu_hosts"
) -> str:
    """YAML, in JSON's spelling."""
    settings = {
        "ansible_host": "127.0.0.1",
        "ansible_user": USER,
        "ansible_ssh_private_key_file": str(state / "key"),
        "ansible_ssh_common_args": " ".join(
            f"-o {shlex.quote(f'{key}={value}')}" for key, value in ssh_options(state).items()
        ),
        "ansible_python_interpreter": "/usr/bin/python3",
        "wanmetal_environment": dict(environment),
    }
    group = {"hosts": {name: {"ansible_port": port} for name, port in sorted(ports.items())}, "vars": settings}
    use = "# Made by lab.py. Use: ansible-playbook site.yml -i inventories/lab -i THIS_FILE"
    return f"{use}\n{json.dumps({group_name: group}, indent=2)}\n"


@dataclass(frozen=True)
class Machine:
    """What decides how a Docker engine is to be had."""

    client: bool = False
    daemon: bool = False
    answers: bool = False
    starting: bool = False
    complaint: str = ""
    root: bool = False
    apt: bool = False
    systemd: bool = False
    docker_host: str = ""


Step = Literal["nothing", "wait", "install", "systemctl", "spawn"]


def engine_step(machine: Machine) -> Step:
    """The next step towards an engine that answers."""
    if machine.client and machine.answers:
        return "nothing"
    if machine.docker_host:
        raise LabError(
            f"the Docker engine at DOCKER_HOST={machine.docker_host} does not answer: {machine.complaint}\n"
            "Start it, or unset DOCKER_HOST to use this machine's own."
        )
    if machine.client and "permission denied" in machine.complaint.lower():
        raise LabError(
            "this user may not talk to the Docker engine.\n"
            "Run it as root, or add the user to the group `docker` and log in again."
        )
    if not (machine.client and machine.daemon):
        if machine.root and machine.apt:
            return "install"
        raise LabError(
            "there is no Docker engine here"
            + (" (installing one needs root)" if machine.apt else "")
            + ".\nInstall Docker Engine (on Debian and Ubuntu: apt-get install docker.io) and start it."
        )
    if not machine.root:
        raise LabError(
            f"the Docker engine does not answer: {machine.complaint}\nStart it as root: systemctl start docker"
        )
    if machine.starting:
        return "wait"
    return "systemctl" if machine.systemd else "spawn"


def left_behind(pid_file: str, program: str, running: Callable[[int], str]) -> bool:
    """Whether a pid file names a process that is gone, or that has become another program."""
    return not pid_file.strip().isdigit() or running(int(pid_file)) != program


# ------------------------------------------------------------------------------------- this machine


def run(
    *command: str, text: str | bytes | None = None, timeout: float | None = None, hold: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program; `hold` are descriptors (the lock) that it keeps should this program die before it."""
    data = text.encode() if isinstance(text, str) else text
    try:
        done = subprocess.run(
            command,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
            pass_fds=hold,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not found")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]}: no answer in {timeout:.0f} s")
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


def must(*command: str, text: str | bytes | None = None, hold: Sequence[int] = ()) -> str:
    done = run(*command, text=text, hold=hold)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise LabError(f"`{shlex.join(command[:3])} …` failed with status {done.returncode}:\n{tail}")
    return done.stdout


def read(path: str | Path) -> str:
    try:
        return Path(path).expanduser().read_text(errors="replace")
    except OSError:
        return ""


def write(path: Path, content: str, mode: int = 0o644) -> None:
    """Whole or not at all, and only when it differs."""
    if path.exists() and read(path) == content and path.stat().st_mode & 0o777 == mode:
        return
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    part.touch(mode)
    part.write_text(content)
    part.replace(path)


def apt_family() -> bool:
    words = re.findall(r"^ID(?:_LIKE)?=(.*)$", read("/etc/os-release"), re.MULTILINE)
    return bool({"debian", "ubuntu"} & set(" ".join(words).replace('"', "").split()))


def install_packages(*packages: str) -> None:
    say(f"installing {', '.join(packages)}")
    settings = ["-o", "Acquire::Retries=5", "-o", "DPkg::Lock::Timeout=300"]
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", *settings]
    persist(lambda: must(*apt, "update"), "apt-get update")
    persist(lambda: must(*apt, "install", "--no-install-recommends", *packages), "apt-get install")


def persist(action: Callable[[], Any], what: str, attempts: int = 3) -> None:
    for attempt in range(1, attempts + 1):
        try:
            action()
        except LabError as error:
            if attempt == attempts:
                raise
            say(f"{what} failed, trying again: {str(error).splitlines()[-1]}")
            time.sleep(5 * attempt)
        else:
            return


def machine_sources(codename: str) -> list[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as lists:  # without downloaded lists apt answers twenty times faster
        (Path(lists) / "partial").mkdir()
        command = ("apt-get", "-o", f"Dir::State::lists={lists}", "indextargets", "--no-release-info")
        targets = run(*command, "--format=$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
    return distribution_sources(targets.stdout, codename)


def pip_index() -> str:
    found = ""
    for path in PIP_CONFIGURATIONS:
        parser = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(configparser.Error):
            parser.read_string(read(path))
            found = parser.get("global", "index-url", fallback=found)
    return found


def own_certificates() -> dict[str, bytes]:
    found = {}
    for folder in map(Path, CERTIFICATE_FOLDERS):
        for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
            if path.suffix in (".crt", ".pem") and path.is_file():
                found[f"{path.stem}.crt"] = path.read_bytes()
    return found


def environment() -> dict[str, str]:
    return host_environment(os.environ, pip_index(), own_certificates=bool(own_certificates()))


# ------------------------------------------------------------------------------------------- engine


def look_at_machine() -> Machine:
    client = shutil.which("docker") is not None
    asked = run("docker", "version", "--format={{.Server.Version}}", timeout=120)
    return Machine(
        client=client,
        daemon=shutil.which("dockerd") is not None,
        answers=asked.returncode == 0,
        starting=not left_behind(read("/var/run/docker.pid"), "dockerd", program_of),
        complaint=asked.stderr.strip(),
        root=os.geteuid() == 0,
        apt=apt_family(),
        systemd=Path("/run/systemd/system").is_dir(),
        docker_host=os.environ.get("DOCKER_HOST", ""),
    )


def program_of(pid: int) -> str:
    """Its name, or nothing once it has ended (also while nobody has asked for its exit status)."""
    ended = re.search(r"^State:\s+[ZX]", read(f"/proc/{pid}/status"), re.MULTILINE)
    return "" if ended else read(f"/proc/{pid}/comm").strip()


def clear_leftovers() -> None:
    """A daemon that was killed leaves pid files and sockets that keep the next one from starting."""
    own = Path("/var/run/docker/containerd")
    if left_behind(read(own / "containerd.pid"), "containerd", program_of):
        for path in [own / "containerd.pid", *own.glob("*.sock*")]:
            path.unlink(missing_ok=True)
    Path("/var/run/docker.pid").unlink(missing_ok=True)


def spawn_daemon(state: Path) -> None:
    clear_leftovers()
    log = state / "dockerd.log"
    say(f"starting dockerd (its log: {log})")
    with log.open("wb") as out:
        daemon = subprocess.Popen(  # it outlives this program
            ["dockerd"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/"
        )
    for _ in range(1500):
        if run("docker", "version", timeout=120).returncode == 0:
            return
        if daemon.poll() is not None:
            break
        time.sleep(0.2)
    tail = "\n".join(read(log).splitlines()[-15:])
    raise LabError(f"dockerd did not start. The end of {log}:\n{tail}")


def ensure_engine(state: Path) -> None:
    done: list[Step] = []
    while True:
        step = engine_step(look_at_machine())
        if step == "nothing":
            return
        if done.count(step) >= (60 if step == "wait" else 1):
            raise LabError(f"the Docker engine still does not answer after: {', '.join(dict.fromkeys(done))}")
        done.append(step)
        if step == "install":
            install_packages("docker.io", "debootstrap", "iptables")
        elif step == "systemctl":
            say("starting docker.service")
            must("systemctl", "start", "docker.service")
        elif step == "spawn":
            spawn_daemon(state)
        else:
            time.sleep(1)


def engine_summary() -> str:
    text = must("docker", "version", "--format={{.Server.Version}}").strip()
    return f"Docker {text}"


# -------------------------------------------------------------------------------------------- image


def build_context(system: System) -> dict[str, bytes]:
    """All that decides what the image becomes, but the base."""
    settings = environment()
    fetch = {
        "etc/apt/apt.conf.d/90lab": package_settings(run("apt-config", "dump").stdout),
        "etc/apt/sources.list.d/machine.list": "".join(
            f"deb {' '.join(source)}\n" for source in machine_sources(system.codename)
        ),
    }
    context = {f"fetch/{path}": text.encode() for path, text in fetch.items() if text}
    certificates = own_certificates()
    if certificates:  # apt may need them before the package is there that would put them in place
        bundles = [Path(path) for path in CERTIFICATE_BUNDLES if Path(path).is_file()]
        context["fetch/etc/ssl/certs/ca-certificates.crt"] = bundles[0].read_bytes() if bundles else b""
    for name, content in certificates.items():
        context[f"machine/usr/local/share/ca-certificates/{name}"] = content
    context["machine/etc/environment"] = "".join(f'{name}="{value}"\n' for name, value in settings.items()).encode()
    keep = " ".join(settings)
    context["machine/etc/sudoers.d/environment"] = f'Defaults env_keep += "{keep}"\n'.encode() if keep else b""
    return context | {"Dockerfile": (HERE / "Dockerfile").read_bytes()}


def has_image(tag: str) -> bool:
    return run("docker", "image", "inspect", tag).returncode == 0


def base_image(state: Path, system: System, lock: int) -> tuple[str, str]:
    """(tag, how it was come by)."""
    own = f"{REPOSITORY}-base:{system.codename}"
    if has_image(own):
        return own, "debootstrap"
    if has_image(system.image):
        return system.image, "pulled"
    say(f"pulling {system.image}")
    pulled = run("docker", "pull", system.image, timeout=900)
    if pulled.returncode == 0:
        return system.image, "pulled"
    say(f"no registry within reach ({(pulled.stderr.strip().splitlines() or ['?'])[-1]})")
    bootstrap(state, own, system, lock)
    return own, "debootstrap"


def bootstrap(state: Path, tag: str, system: System, lock: int) -> None:
    if os.geteuid():
        raise LabError(f"{system.image} cannot be pulled, and to build it with debootstrap needs root.")
    if shutil.which("debootstrap") is None:
        if not apt_family():
            raise LabError(f"{system.image} cannot be pulled, and there is no debootstrap: install it.")
        install_packages("debootstrap")
    mirrors = [uri for uri, suite, _ in machine_sources(system.codename) if suite == system.codename]
    say(f"building the base with debootstrap from {mirrors[0] if mirrors else 'its default mirror'}")
    root = state / "base"

    def attempt() -> None:
        shutil.rmtree(root, ignore_errors=True)
        # In a mount namespace of its own: what it mounts in there goes with it, however it ends.
        command = ("unshare", "--mount", "debootstrap", "--variant=minbase", system.codename, str(root))
        must(*command, *mirrors[:1], hold=[lock])

    try:
        persist(attempt, "debootstrap")
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            command = ["docker", "import", f"--change=LABEL {LABEL}=base", "-", tag]
            done = subprocess.run(command, stdin=tar.stdout, capture_output=True, check=False)
        if done.returncode or tar.returncode:
            raise LabError(f"docker import failed: {done.stderr.decode(errors='replace')}")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def ensure_image(state: Path, system_name: str, lock: int) -> str:
    """The tag of the image, which is there when this returns; `wanmetal-lab:<system>` names it too."""
    system = SYSTEMS[system_name]
    context = build_context(system)
    stable = f"{REPOSITORY}:{system_name}"
    tag = f"{stable}-{digest(context)}"
    if not has_image(tag):
        started = time.monotonic()
        with progress("building the base"):
            base, origin = base_image(state, system, lock)
        say(f"building {tag} on {base} ({origin})")
        if run("docker", "buildx", "version").returncode:
            os.environ["DOCKER_BUILDKIT"] = "0"  # a client without buildx refuses to build otherwise
        files = {path: (content, mode_of(path), 0) for path, content in context.items()}
        proxies = [f"--build-arg={name}" for name in os.environ if name.lower() in PROXY_NAMES]
        command = ["docker", "build", "--force-rm", f"--tag={tag}", f"--build-arg=BASE={base}", *proxies]
        with progress(f"building {tag}"):
            must(*command, f"--label={LABEL}={origin}", "-", text=archive(files))
        say(f"built {tag} in {time.monotonic() - started:.0f} s")
        forget_old_images(stable, tag)
    must("docker", "tag", tag, stable)
    return tag


def mode_of(path: str) -> int:
    return 0o440 if "/sudoers.d/" in path else 0o644


def forget_old_images(stable: str, keep: str) -> None:
    listed = must("docker", "images", "--format={{.Repository}}:{{.Tag}}", REPOSITORY).split()
    for tag in listed:
        if tag.startswith(f"{stable}-") and tag != keep:
            run("docker", "rmi", tag)  # fails, rightly, while a host is made of it


# -------------------------------------------------------------------------------------------- hosts


@dataclass(frozen=True)
class Host:
    name: str
    container: str
    state: str
    image: str
    port: int | None


def hosts(state: Path) -> dict[str, Host]:
    ids = must("docker", "ps", "--all", "--quiet", f"--filter=label={LABEL}={state}").split()
    found = {}
    for item in json.loads(must("docker", "container", "inspect", *ids)) if ids else []:
        ports = item["NetworkSettings"]["Ports"].get("22/tcp") or [{}]
        name = item["Config"]["Labels"][f"{LABEL}.name"]
        port = int(ports[0]["HostPort"]) if "HostPort" in ports[0] else None
        found[name] = Host(name, item["Name"].lstrip("/"), item["State"]["Status"], item["Image"], port)
    return dict(sorted(found.items()))


def ensure_key(path: Path) -> str:
    """Make a key once; return its public half."""
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)
        must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", REPOSITORY, "-f", str(part))
        part.with_name(f"{part.name}.pub").unlink()
        part.replace(path)
    public = path.with_name(f"{path.name}.pub")
    if not public.exists():
        write(public, must("ssh-keygen", "-y", "-f", str(path)))
    return public.read_text()


def create_host(state: Path, name: str, image: str) -> None:
    (state / "store" / "hosts").mkdir(parents=True, exist_ok=True)
    (state / "store" / "cache").mkdir(exist_ok=True)
    (state / "host_keys").mkdir(exist_ok=True)
    login = ensure_key(state / "key")
    public = ensure_key(state / "host_keys" / name)
    private = (state / "host_keys" / name).read_bytes()
    delete_tree(state / "store" / "hosts" / name, image)  # of a host of this name that Docker has removed
    must("docker", *create_arguments(state, name, image))
    files = {
        "etc/ssh/ssh_host_ed25519_key": (private, 0o600, 0),
        "etc/ssh/ssh_host_ed25519_key.pub": (public.encode(), 0o644, 0),
        f"home/{USER}/.ssh/": (b"", 0o700, 1000),
        f"home/{USER}/.ssh/authorized_keys": (login.encode(), 0o600, 1000),
    }
    must("docker", "cp", "--archive", "-", f"{container_name(state, name)}:/", text=archive(files))


def wait_for_system(host: Host, *, fresh: bool, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while True:
        command = ("docker", "exec", host.container, "systemctl", "is-system-running", "--wait")
        status = run(*command, timeout=seconds).stdout.strip()
        if status == "running":
            return
        if status == "degraded":
            failed = must("docker", "exec", host.container, "systemctl", "--failed", "--plain", "--no-legend")
            units = ", ".join(line.split()[0] for line in failed.splitlines() if line.split())
            if not fresh:
                say(f"{host.name}: these units have failed: {units}")
                return
            raise LabError(f"{host.name}: a fresh host came up with failed units: {units}")
        if time.monotonic() > deadline:
            raise LabError(
                f"{host.name}: systemd is `{status or 'not answering'}` after {seconds:.0f} s.\n"
                f"See: docker logs {host.container}; docker exec {host.container} systemctl list-jobs"
            )
        time.sleep(0.1)


def wait_for_ssh(state: Path, name: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        done = run("ssh", "-F", str(state / "ssh_config"), "-o", "BatchMode=yes", name, "sudo", "-n", "true")
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise LabError(f"{name}: no login over SSH after {seconds:.0f} s: {done.stderr.strip()}")
        time.sleep(0.2)


def answers_as_sshd(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as link:
        return link.recv(4) == b"SSH-"
    return False


def write_inventory(state: Path) -> dict[str, int]:
    ports = {host.name: host.port for host in hosts(state).values() if host.state == "running" and host.port}
    keys = {name: read(state / "host_keys" / f"{name}.pub") for name in ports}
    known = {port: " ".join(keys[name].split()[:2]) for name, port in ports.items()}
    write(state / "known_hosts", "".join(f"[127.0.0.1]:{port} {key}\n" for port, key in known.items()))
    write(state / "ssh_config", ssh_config(state, ports))
    write(state / "hosts.yml", inventory(state, ports, environment()), mode=0o600)
    return ports


def ensure_host(state: Path, name: str, image: str) -> bool:
    """Whether anything had to be done."""
    host = hosts(state).get(name)
    if host and host.state not in ("running", "exited", "paused"):
        say(f"{name}: was left half-made ({host.state}), making it again")
        must("docker", "rm", "--force", "--volumes", host.container)
        host = None
    if host and host.image != must("docker", "image", "inspect", "--format={{.Id}}", image).strip():
        say(f"{name}: is made of an older image; `lab.py remove {name}` and `lab.py up {name}` renew it")
    if host and host.state == "running":
        write_inventory(state)
        if host.port and answers_as_sshd(host.port):
            return False
    fresh = host is None
    if host is None:
        say(f"{name}: creating it")
        create_host(state, name, image)
    must("docker", "unpause" if host and host.state == "paused" else "start", container_name(state, name))
    host = hosts(state)[name]
    wait_for_system(host, fresh=fresh)
    write_inventory(state)
    wait_for_ssh(state, name)
    return True


def delete_tree(path: Path, image: str | None) -> None:
    """Files that a host has written belong to its users, so without root a container has to delete them."""
    if not path.exists():
        return
    if os.geteuid() and image:
        command = ("docker", "run", "--rm", f"--volume={path.parent}:/mnt", image)
        must(*command, "rm", "-rf", f"/mnt/{path.name}")
    else:
        shutil.rmtree(path)


# ----------------------------------------------------------------------------------------- commands


@contextlib.contextmanager
def locked(state: Path) -> Iterator[int]:
    """One run at a time. The lock goes with the process, so nothing stale is ever left."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            say(f"another run (process {lock.read().strip() or '?'}) is at work, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock.fileno()


def command_engine(state: Path, _: argparse.Namespace) -> None:
    with locked(state):
        ensure_engine(state)
        print(engine_summary())


def command_image(state: Path, options: argparse.Namespace) -> None:
    with locked(state) as lock:
        ensure_engine(state)
        tag = ensure_image(state, options.os, lock)
    if options.print_tag:
        print(tag)
    else:
        origin = must("docker", "image", "inspect", f'--format={{{{index .Config.Labels "{LABEL}"}}}}', tag)
        print(f"{tag} (base: {origin.strip()})")


def command_up(state: Path, options: argparse.Namespace) -> None:
    for name in options.names:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
            raise LabError(f"`{name}` is no host name: small letters, digits and hyphens, please.")
    with locked(state) as lock:
        ensure_engine(state)
        image = ensure_image(state, options.os, lock)
        for name in options.names:
            started = time.monotonic()
            if ensure_host(state, name, image):
                say(f"{name}: up in {time.monotonic() - started:.1f} s")
            else:
                say(f"{name}: is up")
        if options.inventory:
            ports = write_inventory(state)
            options.inventory.parent.mkdir(parents=True, exist_ok=True)
            write(
                options.inventory,
                inventory(state, {name: ports[name] for name in options.names}, environment(), options.group),
                0o600,
            )


def chosen(state: Path, names: Sequence[str], *, missing_ok: bool = False) -> list[Host]:
    present = hosts(state)
    unknown = sorted(set(names) - present.keys())
    if unknown and not missing_ok:
        raise LabError(f"no such host: {', '.join(unknown)}. There is: {', '.join(present) or 'none'}.")
    return [host for host in present.values() if not names or host.name in names]


def command_stop(state: Path, options: argparse.Namespace) -> None:
    with locked(state):
        ensure_engine(state)
        running = [host for host in chosen(state, options.names) if host.state == "running"]
        if running:
            must("docker", "stop", "--time=20", *(host.container for host in running))
        write_inventory(state)
        say(f"stopped: {', '.join(host.name for host in running) or 'nothing was running'}")


def command_remove(state: Path, options: argparse.Namespace) -> None:
    with locked(state):
        ensure_engine(state)
        gone = chosen(state, [] if options.all else options.names, missing_ok=options.missing_ok)
        if gone:
            must("docker", "rm", "--force", "--volumes", *(host.container for host in gone))
        tags = must("docker", "images", "--format={{.Repository}}:{{.Tag}}", REPOSITORY).split()
        helper = tags[0] if tags else None
        for host in gone:
            delete_tree(state / "store" / "hosts" / host.name, helper)
            for key in (host.name, f"{host.name}.pub"):
                (state / "host_keys" / key).unlink(missing_ok=True)
        if options.all:
            delete_tree(state / "store", helper)
            base = must("docker", "images", "--format={{.Repository}}:{{.Tag}}", f"{REPOSITORY}-base").split()
            for tag in [*tags, *base]:
                if run("docker", "rmi", tag).returncode:
                    say(f"{tag} stays: another lab's host is made of it")
            for path in state.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            write_inventory(state)
        say(f"removed: {', '.join(host.name for host in gone) or 'no host was there'}")


def command_status(state: Path, _: argparse.Namespace) -> None:
    machine = look_at_machine()
    print(f"state folder  {state}")
    print(f"engine        {engine_summary() if machine.answers else 'not running'}")
    if not machine.answers:
        return
    images = must("docker", "images", "--format={{.Repository}}:{{.Tag}}  {{.Size}}", REPOSITORY).splitlines()
    for line in images:
        print(f"image         {line}")
    for host in hosts(state).values():
        print(f"host          {host.name}  {host.state}" + (f"  127.0.0.1:{host.port}" if host.port else ""))


def command_ssh(state: Path, options: argparse.Namespace) -> None:
    if f"Host {options.name}\n" not in read(state / "ssh_config"):
        raise LabError(f"{options.name} is not up. Start it: lab.py up {options.name}")
    os.execvp("ssh", ["ssh", "-F", str(state / "ssh_config"), options.name, *options.command])  # noqa: S606


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="lab.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="State (keys, inventory, package cache, releases) is in $WANMETAL_LAB_DIR, or else in "
        "~/.cache/wanmetal/lab.\nUse the hosts with: ansible-playbook site.yml -i inventories/lab "
        "-i ~/.cache/wanmetal/lab/hosts.yml",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, action: Callable[[Path, argparse.Namespace], None], text: str) -> Any:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        return command

    def names(command: Any, default: list[str], text: str) -> None:
        command.add_argument("names", nargs="*", metavar="NAME", default=default, help=text)

    def system(command: Any) -> None:
        default = os.environ.get("WANMETAL_LAB_OS", "debian12")
        command.add_argument("--os", choices=SYSTEMS, default=default, help="default: $WANMETAL_LAB_OS, or debian12")

    add("engine", command_engine, "see to it that a Docker engine runs")
    image = add("image", command_image, "build the hosts' image where it is missing or out of date")
    image.add_argument("--print-tag", action="store_true", help="print nothing but its tag")
    system(image)
    up = add("up", command_up, "create and start hosts, and write the inventory")
    names(up, ["lab1"], "default: lab1")
    up.add_argument("--inventory", type=Path, metavar="FILE", help="write an inventory of these hosts alone, too")
    up.add_argument("--group", default="gpu_hosts", help="their group in it; default: %(default)s")
    system(up)
    names(add("stop", command_stop, "stop hosts"), [], "default: all")
    remove = add("remove", command_remove, "remove hosts with their data; images and package cache stay")
    names(remove, [], "default: all")
    remove.add_argument("--missing-ok", action="store_true", help="hosts that are not there are as good as removed")
    remove.add_argument("--all", action="store_true", help="all hosts, the images, keys and package cache too")
    add("status", command_status, "show what there is")
    ssh = add("ssh", command_ssh, "log in, or run a command")
    ssh.add_argument("name", metavar="NAME")
    ssh.add_argument("command", nargs=argparse.REMAINDER)
    return top


def state_folder() -> Path:
    return Path(os.environ.get("WANMETAL_LAB_DIR") or "~/.cache/wanmetal/lab").expanduser().resolve()


def main() -> int:
    options = parser().parse_args()
    try:
        options.action(state_folder(), options)
    except LabError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
