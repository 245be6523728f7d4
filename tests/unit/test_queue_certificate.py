"""The CA and the certificate that the queue's host makes, where a deploy is killed amid them."""

from __future__ import annotations

import grp
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

CERTIFY = (Path(__file__).resolve().parents[2] / "roles/queue/files/certify").read_text()
GROUP = grp.getgrgid(os.getegid()).gr_name
PROGRAMS = ("openssl", "mv")


def certify(folder: Path, name: str, programs: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = [str(programs)] * bool(programs) + [os.environ["PATH"]]
    command = ["sh", "-e", "-c", CERTIFY, "certify", str(folder), name, GROUP]
    environ = {**os.environ, "PATH": os.pathsep.join(path)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def sound(folder: Path, name: str, check: str) -> bool:
    """Whether the key, the certificate, its name and the CA are of one another."""
    text = f"""cd {shlex.quote(str(folder))}
openssl verify -CAfile ca.pem server.pem && openssl x509 -in server.pem -noout {check} {name} | grep 'does match' &&
test "$(openssl x509 -in server.pem -noout -pubkey)" = "$(openssl pkey -in server.pem -pubout)" &&
test "$(openssl x509 -in ca.pem -noout -pubkey)" = "$(openssl pkey -in ca.key -pubout)"
"""
    return subprocess.run(["sh", "-c", text], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("before", "wanted", "check"),
    [
        ("", "10.0.0.7", "-checkip"),
        ("10.0.0.7", "queue.example.com", "-checkhost"),
        ("without its key", "fd00::7", "-checkip"),
    ],
)
def test_killed_before_each_program(tmp_path: Path, before: str, wanted: str, check: str) -> None:
    first, programs, count = tmp_path / "first", tmp_path / "bin", tmp_path / "count"
    first.mkdir()
    programs.mkdir()
    if before:
        certify(first, before if "." in before else wanted)
    if before == "without its key":
        (first / "ca.key").unlink()
    for name in PROGRAMS:
        (programs / name).write_text(f"""#!/bin/sh
read -r left < {count}; echo $((left - 1)) > {count}
[ "$left" -gt 0 ] || kill -KILL $PPID
exec {shutil.which(name)} "$@"
""")
        (programs / name).chmod(0o755)
    for number in range(40):
        folder = tmp_path / f"killed{number}"
        shutil.copytree(first, folder)
        count.write_text(str(number))
        ended = certify(folder, wanted, programs).returncode
        assert certify(folder, wanted).returncode == 0
        assert sound(folder, wanted, check), f"after it was killed before program {number + 1}"
        if ended != -signal.SIGKILL:
            assert "made" not in certify(folder, wanted).stdout, "and all stays as it is"
            return
    pytest.fail("it has more programs than were tried")
