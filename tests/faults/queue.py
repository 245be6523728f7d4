"""Deploys of the queue that are killed at random: is the next one green, and does the one after it change nothing?

    ./test --faults queue                                    # 20 rounds
    .venv/test/bin/python -m tests.faults.queue --rounds 5 --seed 7

Every second round deploys to a bare lab host, the others change the queue's name, which makes another certificate and
restarts both services. Before the next deploy PostgreSQL is stopped or killed as well. It ends with 1 where a round was
lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.deploys import KILL, STATE
from tests.worker import LAB, PROJECT, Worker, changed, run

HOST = Worker("queue1")
FAULTS = {"Ansible is killed": "", "a program of the deploy is killed": KILL, "the host loses power": ""}
DATABASE = {
    "PostgreSQL runs": "true",
    "PostgreSQL is stopped": "systemctl stop 'postgresql@*'",
    "PostgreSQL is killed": "systemctl kill --kill-who=main --signal=KILL 'postgresql@*'",
}
MAIN = "systemctl show 'postgresql@*' --property=MainPID"


def play(fault: str, database: str, after: float, command: list[str | Path]) -> tuple[bool, str]:
    """Whether a deploy was killed in time, and what is wrong after it."""
    with subprocess.Popen(command, cwd=PROJECT, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        time.sleep(after)
        in_time = process.poll() is None
        if fault == "the host loses power":
            HOST.cut_power()
        elif fault == "Ansible is killed":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            HOST.ssh(f"sudo sh -c {shlex.quote(FAULTS[fault])}", ok=False)
    if fault == "the host loses power":
        HOST.up()
    HOST.ssh(f"sudo sh -c {shlex.quote(DATABASE[database])}", ok=False)
    if run(*command, ok=False).returncode:
        return in_time, "the next deploy failed"
    before, again = HOST.ssh(MAIN), run(*command, ok=False)
    if again.returncode or changed(again.stdout):
        return in_time, "the one after it failed, or changed something"
    HOST.ssh("curl --silent --fail --max-time 5 http://127.0.0.1:8391/health")
    return in_time, "" if HOST.ssh(MAIN) == before else "PostgreSQL was restarted by a deploy that changed nothing"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    luck, lost, tried = random.Random(options.seed), 0, 0  # noqa: S311
    hosts = {"queue_hosts": {"hosts": {HOST.name: {"queue_listen": "0.0.0.0"}}}}  # noqa: S104
    run(*LAB, "image")
    (STATE / "queue.yml").write_text(json.dumps(hosts))
    command: list[str | Path] = [
        "ansible-playbook",
        PROJECT / "playbooks/queue.yml",
        *HOST.inventory,
        "-i",
        STATE / "queue.yml",
        "-e",
    ]
    try:
        for number in range(options.rounds):
            if number % 2 == 0:
                HOST.remove()
                HOST.up()
            fault, database = luck.choice(list(FAULTS)), luck.choice(list(DATABASE))
            after = luck.uniform(1, 12 if number % 2 else 60)
            in_time, wrong = play(fault, database, after, [*command, f"queue_name=q{number}.example"])
            print(f"round {number + 1}: {fault} after {after:.1f} s, {database}: {wrong or 'passed'}", flush=True)
            lost, tried = lost + bool(wrong), tried + in_time
    finally:
        HOST.remove()
    print(f"{options.rounds - tried} of {options.rounds} deploys had ended before their fault came")
    print(f"{options.rounds - lost} passed, {lost} failed")
    return 1 if lost or not tried else 0


if __name__ == "__main__":
    sys.exit(main())
