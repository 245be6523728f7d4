"""Deploys that are cut off at random: does the worker go on serving what was verified, and is the next deploy green?

    ./test --faults                                          # 50 rounds
    .venv/test/bin/python -m tests.faults.deploys --rounds 5 --seed 7

A lab host with variant base and its services is deployed once. Each round then gives a deploy something to do, puts a
fault into it at a random moment, looks at the worker, and deploys again. The table goes to reports/faults-deploys.json,
too. It ends with 1 where a round was lost.

The host keeps its releases on a disk of its own, a file that is mounted here, which can fill. Btrfs packs it to some
8 GB. A container shares the clock of its machine, so libfaketime moves it for what Ansible runs on the host, and not
for systemd.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests import worker
from tests.worker import LAB, PROJECT, Worker, run

STATE = worker.STATE = worker.STATE / "faults"
"""Of a lab of its own, whose hosts keep their data on a disk of their own."""
DISK_GB = 40
os.environ["WANMETAL_LAB_DIR"] = str(STATE)
HOST = Worker("faults1")
PYTHON = "/usr/local/sbin/python3-of-the-bench"
ROOT = f"/srv/wanmetal/hosts/{HOST.name}"
REPORT = PROJECT / "reports/faults-deploys.json"
SERVES_S = 240
LOOK = f"""
curl --silent --fail --max-time 5 --output /dev/null http://127.0.0.1:8188/system_stats || exit 1
echo served
generation=$(sed 's/.*"generation": *"\\([^"]*\\)".*/\\1/' {ROOT}/verified.json)
grep -qzx "WANMETAL_GENERATION=$generation" "/proc/$(systemctl show comfyui -P MainPID)/environ" && echo verified
"""
FIRST_S = 30.0
"""The first faults come within this time, later ones within the time that the last deploy with the same work took. A
deploy that has ended by then has none, and its round is not counted as tried."""

OTHERS = f"""
cd {ROOT}; current=$(readlink -f current); environment=$(dirname "$(readlink -f current/venv)")
for path in releases/* environments/comfyui-*; do
  case $(readlink -f "$path") in "$current" | "$environment") ;; *) rm -rf "$path" ;; esac
done
"""
"""Releases that do not run are removed, so that the next deploy has one to build."""

CLOCK = f"""
apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install faketime > /dev/null
cat > {PYTHON} << 'EOF'
#!/bin/sh
# The skipped programs time their waits by the clock that no jump moves; libfaketime moves the timers of that one, too.
export FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_SKIP_CMDS=systemd-run,systemctl
clock=/run/clock-of-the-bench
[ ! -s $clock ] || export FAKETIME=$(cat $clock) LD_PRELOAD=$(ls /usr/lib/*/faketime/libfaketime.so.1)
exec /usr/bin/python3 "$@"
EOF
chmod 0755 {PYTHON}; : > /run/clock-of-the-bench
"""
# By the first word alone: shells, this one too, have the names of programs among the others, and what a killed shell
# had started goes on.
KILL = """
for _ in $(seq 100); do
  pid=$(pgrep -u root -f "^([^ ]*/)?(python3|uv|git)( |$)" | shuf -n 1)
  [ -z "$pid" ] || ! ps -o args= -p "$pid" || ! kill -KILL "$pid" || break
  pid=
  sleep 0.1
done
[ "$pid" ]"""
FULL = (
    "fallocate --length $(($(df --output=avail --block-size=1 /srv/wanmetal | tail -n 1) - 1000000)) /srv/wanmetal/full"
)
HEAL = "rm -f /srv/wanmetal/full; : > /run/clock-of-the-bench"

FAULTS = {
    "Ansible is killed": "",
    "the connection is cut": "pkill -KILL -u ops sshd",
    "a program of the deploy is killed": KILL,
    "the host loses power": "",
    "a second deploy begins": "",
    "sources are out of reach": "",
    "the disk fills": FULL,
    "the clock jumps ahead": "echo +400d > /run/clock-of-the-bench",
    "the clock jumps back": "echo -400d > /run/clock-of-the-bench",
}


@dataclass(frozen=True)
class Round:
    """What was tried and what came of it."""

    work: str
    fault: str
    after_s: float
    in_time: bool
    status: int
    served: bool
    verified: bool
    next_green: bool

    @property
    def lost(self) -> bool:
        return not (self.served and self.verified and self.next_green)


def deploy(log: Path, settings: dict[str, object]) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            ["ansible-playbook", str(PROJECT / "site.yml"), *inventory(), "-e", json.dumps(settings)],
            cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def inventory() -> list[str]:
    """Of the lab, with the Python whose clock can be moved."""
    clock = STATE / "clock.yml"
    hosts = {"gpu_hosts": {"hosts": {HOST.name: {"ansible_python_interpreter": PYTHON}}}}
    clock.write_text(json.dumps(hosts))
    return [*HOST.inventory, "-i", str(clock)]


@contextlib.contextmanager
def disk() -> Iterator[None]:
    """Give the hosts of this lab a disk of their own, which is gone afterwards."""
    store, image = STATE / "store", STATE / "store.img"
    store.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(DISK_GB * 10**9)
    run("mkfs.btrfs", "--quiet", image)
    run("mount", "-o", "loop,discard,compress=zstd:1", image, store)
    try:
        yield
    finally:
        run("umount", store)
        image.unlink()


def look(seconds: float) -> tuple[bool, bool]:
    """Whether ComfyUI answers within a time, and whether what runs is what was verified last."""
    end = time.monotonic() + seconds
    while True:
        said = HOST.ssh(f"sudo sh -c {shlex.quote(LOOK)}", ok=False)
        if "verified" in said or time.monotonic() > end:
            return "served" in said, "verified" in said
        time.sleep(2)


def play(
    number: int, fault: str, luck: random.Random, folder: Path, settings: dict[str, object], took: dict[str, float]
) -> Round:
    """One round. What is to be done stays in the settings, and the next deploy has it to do as well."""
    work = "a release" if fault == "sources are out of reach" else luck.choice(["a release", "settings"])
    if work == "settings":
        settings["comfyui_extra_args"] = [] if settings["comfyui_extra_args"] else ["--dont-print-server"]
    else:
        settings["wanmetal_lane"] = "cu128" if settings["wanmetal_lane"] == "cu130" else "cu130"
        HOST.ssh(f"sudo sh -c {shlex.quote(OTHERS)}")
    broken = dict(settings)
    if fault == "sources are out of reach":
        nowhere = "http://127.0.0.1:9"
        broken["wanmetal_environment"] = {"http_proxy": nowhere, "https_proxy": nowhere}
    after = luck.uniform(1, took[work])
    process = deploy(folder / f"{number}.log", broken)
    second = None
    in_time = fault == "sources are out of reach"
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        in_time = True
        if fault == "Ansible is killed":
            os.killpg(process.pid, signal.SIGKILL)
        elif fault == "the host loses power":
            HOST.cut_power()
        elif fault == "a second deploy begins":
            second = deploy(folder / f"{number}-second.log", settings)
        elif FAULTS[fault]:
            told = HOST.ssh(f"sudo sh -c {shlex.quote(FAULTS[fault] + ' && echo It is in')}", ok=False)
            in_time = told.endswith("It is in") or fault == "the connection is cut"
    status = process.wait(1200)
    if second:
        second.wait(1200)
    if fault == "the host loses power":
        HOST.up()
    served, verified = look(SERVES_S)
    HOST.ssh(f"sudo sh -c {shlex.quote(HEAL)}")
    begin = time.monotonic()
    green = deploy(folder / f"{number}-next.log", settings).wait(1200) == 0
    took[work] = time.monotonic() - begin
    whole = look(SERVES_S)
    return Round(work, fault, round(after, 1), in_time, status, served, verified, green and all(whole))


def table(rounds: list[Round]) -> list[str]:
    """Rows for Markdown."""
    lines = ["| fault | tried | deploy failed | served meanwhile | what was verified | next deploy green | lost |"]
    lines.append(f"|{' --- |' * 7}")
    by_fault: dict[str, list[Round]] = collections.defaultdict(list)
    rounds = [one for one in rounds if one.in_time]
    for one in rounds:
        by_fault[one.fault].append(one)
    for fault, some in [*sorted(by_fault.items()), ("all", rounds)]:
        counts = [len(some), sum(one.status != 0 for one in some)]
        counts += [sum(getattr(one, name) for one in some) for name in ("served", "verified", "next_green", "lost")]
        lines.append(f"| {fault} | {' | '.join(map(str, counts))} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="whose faults came in time; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", choices=FAULTS, action="append", help="this one alone, or these; default: all")
    parser.add_argument("--seconds", type=float, default=3 * 3600, help="no round begins after; default: %(default)s")
    options = parser.parse_args()
    folder = PROJECT / "reports/faults"
    folder.mkdir(parents=True, exist_ok=True)
    luck = random.Random(options.seed)  # noqa: S311
    rounds: list[Round] = []
    settings: dict[str, object] = {"wanmetal_lane": "cu128", "comfyui_extra_args": []}
    took = {"a release": FIRST_S, "settings": FIRST_S}
    end = time.monotonic() + options.seconds
    wanted = options.fault or list(FAULTS)
    faults = wanted * (options.rounds // len(wanted) + 1)
    luck.shuffle(faults)
    run(*LAB, "image")
    with disk():
        HOST.up()
        try:
            HOST.ssh(f"sudo sh -c {shlex.quote(CLOCK)}")
            run("ansible-playbook", PROJECT / "site.yml", *inventory())
            for number in itertools.count(1):
                done = sum(one.in_time for one in rounds)
                if done == options.rounds or time.monotonic() > end:
                    break
                rounds.append(play(number, faults[done], luck, folder, settings, took))
                print(f"round {number}: {rounds[-1]}", flush=True)
                REPORT.write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n")
        finally:
            HOST.remove()
    print("\n".join(table(rounds)))
    lost = sum(one.lost for one in rounds)
    in_time = sum(one.in_time for one in rounds)
    survived = sum(one.in_time and not one.lost for one in rounds)
    print(f"{len(rounds) - in_time} of {len(rounds)} deploys had ended before their fault came")
    print(f"{survived} passed, {lost} failed")
    return 1 if lost or not in_time else 0


if __name__ == "__main__":
    sys.exit(main())
