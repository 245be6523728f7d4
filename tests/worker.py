"""A lab host and the ways to deploy to it, for tests that need a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
STATE = Path(os.environ.get("WANMETAL_LAB_DIR") or "~/.cache/wanmetal/lab").expanduser()
# Ansible's programs lie beside the Python that runs this, also where its environment is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
LAB = [sys.executable, str(PROJECT / "tests/lab/lab.py")]


def run(
    *command: str | Path, cwd: Path = PROJECT, ok: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command, show what it says, and expect success unless told otherwise."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | {"PWD": str(cwd)} | environment,  # as a shell would
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    sys.stdout.write(f"$ {' '.join(map(str, command))}\n{done.stdout}")
    if ok:
        assert done.returncode == 0, f"{command[0]} ended with {done.returncode}"
    return done


def changed(output: str) -> int:
    """Changes in the recaps of a playbook's output."""
    counts = re.findall(r"^\S+ +: ok=\d+ +changed=(\d+)", output, re.MULTILINE)
    assert counts, "the output has no recap"
    return sum(map(int, counts))


@dataclass(frozen=True)
class Worker:
    """A host of the lab."""

    name: str

    @property
    def inventory(self) -> list[str]:
        return ["-i", str(PROJECT / "inventories/lab"), "-i", str(STATE / "hosts.yml"), "--limit", self.name]

    def up(self) -> None:
        run(*LAB, "up", self.name)

    def cut_power(self) -> None:
        """End all that runs there at once; ``up`` boots it again."""
        names = run("docker", "ps", "--filter", f"label=wanmetal.lab={STATE}", "--format", "{{.Names}}").stdout.split()
        run("docker", "kill", *(name for name in names if name.endswith(f"-{self.name}")))

    def remove(self) -> None:
        run(*LAB, "remove", "--missing-ok", self.name)

    def ssh(self, command: str, ok: bool = True) -> str:
        return run("ssh", "-F", STATE / "ssh_config", self.name, command, ok=ok).stdout.strip()

    def playbook(self, name: str, *arguments: str, ok: bool = True) -> str:
        return run("ansible-playbook", PROJECT / name, *self.inventory, *arguments, ok=ok).stdout

    def main_pid(self) -> str:
        return self.ssh("systemctl show comfyui --property=MainPID --value")
