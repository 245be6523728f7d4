"""Faults put into a fleet at random: has each job one result, or one honest failure, and does nothing hang?

    ./test --faults fleet                                                        # 300 jobs on four hosts
    .venv/test/bin/python -m tests.faults.fleet --hosts 2 --jobs 60 --seed 7

The first lab host has the queue, as the role queue makes it, and all have ComfyUI and the handler. Clients post jobs
with ids of their own, again and again until they are accepted, while faults come at random times, one after the other.
The first host loses neither its power nor its network, since the queue is there. A container shares the clock of its
machine, so libfaketime moves it for the services and PostgreSQL, and not for systemd or the kernel. With it each sleep
of Python's fails, which is therefore another one in the handler and the queue. The table goes to
reports/faults-fleet.json, too. It ends with 1 where a job has no end, two results, or a failure without a reason, or
where a result is gone later.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import hashlib
import json
import random
import shlex
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from tests.worker import LAB, PROJECT, STATE, Worker, run

REPORT = PROJECT / "reports/faults-fleet.json"
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
LIMIT_S = 600.0
"""A job that has no end by then hangs. Three losses, each seen within 15 s, and restarts of hosts between are less."""
CUT_S = 20

DATA = "/var/lib/postgresql"

CLOCK = "/etc/clock-of-the-bench"
MOVABLE = f"""
set -e
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install faketime > /dev/null
echo +0 > {CLOCK}
cat > {CLOCK}.env << END
LD_PRELOAD='$(ls /usr/lib/*/faketime/libfaketime.so.1)'
FAKETIME_TIMESTAMP_FILE='{CLOCK}'
FAKETIME_CACHE_DURATION='1'
FAKETIME_DONT_FAKE_MONOTONIC='1'
END
units() {{ systemctl list-units --plain --no-legend "$@" | cut -d ' ' -f 1; }}
for unit in $(units 'wanmetal-queue*.service' 'comfyui*.service'); do
  mkdir -p /etc/systemd/system/$unit.d
  printf '[Service]\\nEnvironmentFile={CLOCK}.env\\n' > /etc/systemd/system/$unit.d/clock-of-the-bench.conf
done
for folder in /etc/postgresql/*/main; do
  [ ! -d $folder ] || cat {CLOCK}.env >> $folder/environment
done
for program in /srv/wanmetal/hosts/$(hostname)/environments/[hq]*/program; do
  cat > $program/sitecustomize.py << END
import select, time
time.sleep = lambda seconds: select.select((), (), (), seconds) and None
END
done
systemctl daemon-reload
systemctl restart $(units 'postgresql@*' 'wanmetal-queue*.service' 'comfyui*.service')
"""
MOVED = f"echo {{jump}} > {CLOCK}; sleep 20; echo +0 > {CLOCK}"
JUMPS = ("-400d", "-1h", "+1h", "+400d")

FAULTS = {
    "a host loses power": "",
    "a host's network is cut for 20 s": "",
    "a handler is killed": "systemctl kill --signal=KILL comfyui-handler",
    "a handler is restarted": "systemctl restart comfyui-handler",
    "a ComfyUI is killed": "systemctl kill --signal=KILL comfyui",
    "PostgreSQL is killed": "systemctl kill --signal=KILL 'postgresql@*'",
    "the disk of PostgreSQL is full": f"dd if=/dev/zero of={DATA}/full bs=1M; sleep 15; rm {DATA}/full",
    "the clock of a host jumps": MOVED,
    "the clock of the queue's host jumps": MOVED,
    "the queue is killed": "systemctl kill --signal=KILL wanmetal-queue",
    "the queue is restarted": "systemctl restart wanmetal-queue",
    "what is in front of the queue is restarted": "systemctl restart wanmetal-queue-proxy",
}
OF_THE_QUEUE = {fault for fault in FAULTS if "queue" in fault or "PostgreSQL" in fault}


@dataclass
class Job:
    """What became of a job."""

    id: str
    status: str = "never ended"
    why: str = ""
    digest: str = ""
    seconds: float = 0.0
    refused: int = 0
    attempts: int = 0


class Bench:
    """A fleet of lab hosts and its clients."""

    def __init__(self, hosts: int, folder: Path) -> None:
        self.hosts = [Worker(f"fleet{number + 1}") for number in range(hosts)]
        self.folder = folder
        self.run = f"faults-{time.time_ns()}"
        self.over = threading.Event()
        self.tried: collections.Counter[str] = collections.Counter()
        self.running: collections.Counter[str] = collections.Counter()

    def deploy(self) -> None:
        """Make the fleet, as the README says."""
        run(*LAB, "up", *(host.name for host in self.hosts))
        self.address = {host.name: host.ssh("hostname -I").split()[0] for host in self.hosts}
        first = self.hosts[0]
        # A disk of its own, in memory, which can be filled.
        first.ssh(f"sudo sh -c 'mkdir -p {DATA}; mount -t tmpfs -o size=400m,mode=755 tmpfs {DATA}'")
        services = PROJECT / "molecule/services"
        settings = json.loads((services / "still-settings.json").read_text())
        still = {"name": "still", "graph": str(services / "still.json"), "settings": settings}
        inventory = {
            "queue_hosts": {"hosts": {first.name: {"queue_listen": self.address[first.name]}}},
            "gpu_hosts": {"vars": {"handler_enabled": True, "handler_workflows": [still]}},
        }
        (self.folder / "fleet.yml").write_text(yaml.safe_dump(inventory))
        names = ",".join(host.name for host in self.hosts)
        given: list[str | Path] = [
            "-i",
            str(PROJECT / "inventories/lab"),
            "-i",
            str(STATE / "hosts.yml"),
            "-i",
            self.folder / "fleet.yml",
        ]
        run("ansible-playbook", PROJECT / "site.yml", *given, "--limit", names)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: host.ssh(f"sudo sh -c {shlex.quote(MOVABLE)}"), self.hosts))
        token = first.ssh("sudo wanmetal-queue token-add client bench")
        (self.folder / "ca.pem").write_text(first.ssh("sudo cat /etc/wanmetal-queue/ca.pem"))
        self._headers = {"Authorization": f"Bearer {token}"}
        self._url = f"https://{self.address[first.name]}:8390/v2/any"

    def call(self, path: str, body: Any = None) -> Any:
        answer = requests.request(
            "GET" if body is None else "POST", f"{self._url}/{path}", json=body, headers=self._headers,
            verify=str(self.folder / "ca.pem"), timeout=60,
        )  # fmt: skip
        answer.raise_for_status()
        return answer.json()

    def job(self, number: int, frames: int, end: float) -> Job | None:
        """Post a job until it is accepted, and wait for its end; none is begun after ``end``."""
        job, begun = Job(f"{self.run}-{number}"), time.monotonic()
        if begun > end:
            return None
        given = {"image": PIXEL, "num_frames": frames, "width": 256, "seed": number}
        while job.status not in FINAL and time.monotonic() < begun + LIMIT_S:
            try:
                said = self.call("run", {"id": job.id, "input": given})
                while said["status"] not in FINAL and time.monotonic() < begun + LIMIT_S:
                    time.sleep(0.5)
                    said = self.call(f"status/{job.id}")
                said = self.call(f"status/{job.id}")  # also where it was posted before, and its answer has no result
                job.status, job.why, job.digest = said["status"], str(said.get("error") or ""), digest(said)
            except requests.RequestException:
                job.refused += 1
                time.sleep(1)
        job.seconds = round(time.monotonic() - begun, 1)
        return job

    def posted_again(self, id_: str) -> dict[str, Any]:
        """What the queue tells of a job whose id is posted once more."""
        for _ in range(60):
            try:
                self.call("run", {"id": id_, "input": {}})
                return dict(self.call(f"status/{id_}"))
            except requests.RequestException as error:
                print(f"{id_}: {error}", flush=True)
                time.sleep(1)
        return {"status": "cannot be asked"}

    def fault(self, fault: str, luck: random.Random) -> None:
        """Put a fault in, and take it out again."""
        first = self.hosts[0]
        hit = first if fault in OF_THE_QUEUE else luck.choice(self.hosts[1:])
        busy = json.loads(first.ssh("sudo wanmetal-queue status --json 2> /dev/null", ok=False) or "{}").get(
            "hosts", []
        )
        self.running[fault] += any(host["jobs"] and (hit is first or host["host"] == hit.name) for host in busy)
        self.tried[fault] += 1
        if fault == "a host loses power":
            hit.cut_power()
            time.sleep(luck.uniform(0, 20))
            hit.up()
            self.address[hit.name] = hit.ssh("hostname -I").split()[0]
        elif fault.startswith("a host's network"):
            # Its answers are dropped on the queue's host, so nobody is told: connections just fall silent.
            route = f"{self.address[hit.name]}/32"
            first.ssh(f"sudo sh -c 'ip route add blackhole {route}; sleep {CUT_S}; ip route del blackhole {route}'")
        else:
            hit.ssh(f"sudo sh -c {shlex.quote(FAULTS[fault].format(jump=luck.choice(JUMPS)))}", ok=False)

    def faults(self, seed: int) -> None:
        """Put one fault in after the other."""
        luck = random.Random(seed)  # noqa: S311
        names: list[str] = []
        while not self.over.wait(luck.uniform(1, 8)):
            names = names or luck.sample(sorted(FAULTS), len(FAULTS))
            name = names.pop()
            print(f"round {self.tried.total() + 1}: {name}", flush=True)
            self.fault(name, luck)

    def attempts(self) -> dict[str, int]:
        """How often each job was begun, as the queue's table has it."""
        text = self.hosts[0].ssh(
            "cd / && sudo runuser -u postgres -- psql -AtXF ' ' -c 'SELECT id, attempt FROM jobs' wanmetal-queue"
        )
        return {name: int(number) for name, number in (line.split() for line in text.splitlines())}


def digest(said: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([said.get("output"), said.get("error")]).encode()).hexdigest()


def faulty(jobs: list[Job], later: dict[str, tuple[str, str]]) -> list[str]:
    """What is wrong; ``later`` has each job's state and result when all was over and it had been posted again."""
    wrong = []
    for job in jobs:
        if job.status not in FINAL:
            wrong.append(f"{job.id} has no end after {job.seconds:g} s")
        elif job.status != "COMPLETED" and not job.why:
            wrong.append(f"{job.id} is {job.status} without a reason")
        elif later.get(job.id) != (job.status, job.digest):
            wrong.append(f"{job.id} had one end ({job.status}), and has another later")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=401, help="of each video; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1800, help="no job begins after; default: %(default)s")
    options = parser.parse_args()
    run(*LAB, "image")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options.hosts, Path(name))
        try:
            bench.deploy()
            end, jobs = time.monotonic() + options.seconds, list[Job]()
            with concurrent.futures.ThreadPoolExecutor(2 * options.hosts + 1) as pool:
                faults = pool.submit(bench.faults, options.seed)
                waiting = [pool.submit(bench.job, number, options.frames, end) for number in range(options.jobs)]
                try:
                    jobs = [job for one in waiting if (job := one.result())]
                finally:
                    bench.over.set()
                faults.result()
            attempts = bench.attempts()
            later = {}
            for job in jobs:
                job.attempts = attempts.get(job.id, 0)
                said = bench.posted_again(job.id)
                later[job.id] = (said["status"], digest(said))
        finally:
            for host in bench.hosts:
                host.remove()
    wrong = faulty(jobs, later)
    ends = collections.Counter(job.status for job in jobs)
    table = ["| fault | tried | while jobs ran there |", "| --- | --- | --- |"]
    table += [f"| {fault} | {bench.tried[fault]} | {bench.running[fault]} |" for fault in FAULTS]
    print("\n".join(table))
    print(
        f"{len(jobs)} jobs: {', '.join(f'{number} {status}' for status, number in ends.items())};"
        f" {sum(job.attempts > 1 for job in jobs)} begun again; the longest took {max(job.seconds for job in jobs):g} s"
    )
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps({"faults": bench.tried, "jobs": [asdict(job) for job in jobs]}, indent=1) + "\n")
    print("\n".join(wrong))
    print(f"{len(jobs) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong or not ends["COMPLETED"] or not bench.tried else 0


if __name__ == "__main__":
    sys.exit(main())
