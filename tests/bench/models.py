#!/usr/bin/env python3
"""How fast models are fetched, against bare aria2c, against what the original's script does, and against hf download.

Two network namespaces of its own, joined by a link of 1 Gbit/s and 50 ms (by netem, or where the kernel has none by
link.py), and by a plain one. Needs root, iproute2 and aria2. Prints a table and writes it as JSON to
reports/bench-models.json. Run it as:
.venv/test/bin/python -m tests.bench.models
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".ansible/collections"))

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import background
from ansible_collections.wanmetal.comfyui.tests.origin.origin import REVISION, Blob

MIB = 1024 * 1024
ORIGIN = "10.99.0.2"
HUB = f"http://{ORIGIN}:8600"
NAMESPACE = "WANMETAL_BENCH_NAMESPACE"
HF = "WANMETAL_BENCH_HF"
CONNECTIONS, PARALLEL = 8, 4
COMPARED = ("bare aria2c", "wanmetal")
"""The others run once."""
SHAPE = ["netem", "delay", "25ms", "rate", "1gbit", "limit", "100000"]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=4096, help="MiB of the large file")
    parser.add_argument("--small", type=int, default=50, help="MiB of each of the fifty files")
    parser.add_argument("--turns", type=int, default=3, help="how often the two that are compared run")
    parser.add_argument("--real-time", action="store_true", help="before all else that a busy machine does")
    parser.add_argument("--only-compared", action="store_true", help="leave out the original's script and hf")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache", help="where files are fetched to")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    if NAMESPACE not in os.environ:
        with tempfile.TemporaryDirectory() as tools:
            os.environ[HF] = "" if options.only_compared else hugging_face(Path(tools))
            sys.exit(
                subprocess.run(
                    ["unshare", "--net", sys.executable, "-m", "tests.bench.models", *sys.argv[1:]],
                    env={**os.environ, NAMESPACE: "1"},
                    cwd=ROOT,
                    check=False,
                ).returncode
            )
    if options.real_time:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as source, tempfile.TemporaryDirectory(dir=options.folder) as work:
        print_table(measure(Path(source), Path(work), options))


def hugging_face(folder: Path) -> str:
    """Install hf, outside of the namespaces; return its path, or nothing."""
    uv = str(ROOT / ".venv/uv/bin/uv")
    made = subprocess.run(
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder / "hf")], check=False
    ).returncode
    python = str(folder / "hf/bin/python")
    command = [uv, "pip", "install", "--quiet", "--python", python, "huggingface_hub"]
    if made or subprocess.run(command, check=False).returncode:
        print("hf download is not measured: huggingface_hub could not be installed")
        return ""
    return str(folder / "hf/bin/hf")


# The network


@contextlib.contextmanager
def network(files: Path, shaped: bool) -> Iterator[str]:
    """Join this namespace with one of the origin, and start that; yield what the link is."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    there = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
    started = [holder]
    try:
        wait_until(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink())
        run("ip", "link", "set", "lo", "up")
        kind = "plain"
        netem = subprocess.run(
            ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1us"], capture_output=True, check=False
        )
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], capture_output=True, check=False)
        if shaped and netem.returncode:
            kind = "1 Gbit/s, 50 ms (tap)"
            command = [sys.executable, str(ROOT / "tests/bench/link.py"), "client", "origin", "0.025", "125000000"]
            link = subprocess.Popen(command, stdout=subprocess.PIPE)
            started.append(link)
            assert link.stdout is not None
            link.stdout.readline()
            for device in ("client", "origin"):
                # Large frames, or the link takes a core of its own away from what is measured.
                run("ip", "link", "set", device, "txqueuelen", "10000", "mtu", "60000")
            run("ip", "link", "set", "origin", "netns", str(holder.pid))
        else:
            run("ip", "link", "add", "client", "type", "veth", "peer", "name", "origin", "netns", str(holder.pid))
        run("ip", "address", "add", "10.99.0.1/24", "dev", "client")
        run("ip", "link", "set", "client", "up")
        run(*there, "ip", "address", "add", f"{ORIGIN}/24", "dev", "origin")
        run(*there, "ip", "link", "set", "origin", "up")
        if shaped and not netem.returncode:
            kind = "1 Gbit/s, 50 ms (netem)"
            for prefix, device in (([], "client"), (there, "origin")):
                run(*prefix, "tc", "qdisc", "add", "dev", device, "root", *SHAPE)
        serve = [
            sys.executable,
            str(ROOT / "tests/origin/origin.py"),
            f"--bind={ORIGIN}",
            "--port=8600",
            f"--files={files}",
        ]
        started.append(subprocess.Popen([*there, *serve]))
        wait_until(lambda: sent() >= 0, 120)
        yield kind
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
        subprocess.run(["ip", "link", "del", "client"], capture_output=True, check=False)


def run(*command: str) -> None:
    """Run a command that must not fail."""
    subprocess.run(command, check=True)


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if true():
                return
        time.sleep(0.05)
    raise TimeoutError("it did not happen in time")


def sent() -> int:
    """Bytes that left the origin so far."""
    with urllib.request.urlopen(f"{HUB}/_origin/stats", timeout=5) as answer:
        return int(json.load(answer)["sent"])


# The contenders


class Contest:
    """One list of files, fetched by each contender into an empty folder."""

    def __init__(self, work: Path, blobs: list[Blob]) -> None:
        self._work = work
        self._blobs = blobs
        self.bytes = sum(blob.size for blob in blobs)
        self.peak = 0

    def url(self, blob: Blob) -> str:
        """Address of a file."""
        return f"{HUB}/own/repo/resolve/{REVISION}/{blob.name}"

    def ours(self, folder: Path) -> None:
        """This project: with hashes, record and safe names."""
        order = {
            "files": [
                {
                    "name": blob.name,
                    "folder": "models",
                    "urls": [self.url(blob)],
                    "bytes": blob.size,
                    "sha256": blob.sha256,
                }
                for blob in self._blobs
            ],
            "dest": str(folder),
            "state_dir": str(folder / "state"),
            "list": "models",
            "connections": CONNECTIONS,
            "parallel": PARALLEL,
            "limit": "",
            "reserve": "",
            "tries": 6,
            "pause": 2.0,
            "prune": False,
            "allow_unverified": False,
            "verify": "state",
            "wait": 0,
        }
        (folder / "job.json").write_text(json.dumps(order), encoding="utf-8")
        (folder / "program").write_bytes(background.build())
        self._run([[sys.executable, str(folder / "program"), "run", str(folder / "job.json")]], watch=True)

    def bare(self, folder: Path) -> None:
        """One aria2c with the same connections, and nothing else."""
        lines = [f"{self.url(blob)}\n  out={blob.name}\n" for blob in self._blobs]
        (folder / "list").write_text("".join(lines), encoding="utf-8")
        limits = [f"-x{CONNECTIONS}", f"-s{CONNECTIONS}", f"-j{PARALLEL}", "--file-allocation=none"]
        self._run([["aria2c", "--quiet", *limits, f"--dir={folder}", f"--input-file={folder / 'list'}"]])

    def original(self, folder: Path) -> None:
        """What the original's script does: an aria2c for each file, all at once, no hash."""
        options = ["--quiet", "-x8", "-s8", "--continue=true"]
        self._run(
            [["aria2c", *options, f"--dir={folder}", f"--out={blob.name}", self.url(blob)] for blob in self._blobs]
        )

    def hub(self, folder: Path) -> None:
        """Hugging Face's own program."""
        names = [blob.name for blob in self._blobs]
        self._run(
            [[os.environ[HF], "download", "own/repo", *names, f"--revision={REVISION}", f"--local-dir={folder}"]],
            HF_ENDPOINT=HUB,
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HOME=str(folder / "home"),
        )

    def _run(self, commands: list[list[str]], *, watch: bool = False, **environment: str) -> None:
        processes = [
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
            )
            for command in commands
        ]
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(processes[0].pid, over))
        if watch:
            watcher.start()
        codes = [process.wait() for process in processes]
        over.set()
        if watch:
            watcher.join()
        if any(codes):
            raise RuntimeError(f"{commands[0][:3]} ended with {codes}")

    def _watch(self, pid: int, over: threading.Event) -> None:
        """Note the most memory that the process and its children use together, without shared pages twice."""
        while not over.wait(0.5):
            total, children = 0, list[str]()
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
            for one in [str(pid), *children]:
                with contextlib.suppress(OSError, ValueError):
                    text = Path(f"/proc/{one}/smaps_rollup").read_text(encoding="utf-8")
                    total += int(text.partition("\nPss:")[2].split()[0]) * 1024
            self.peak = max(self.peak, total)

    def once(self, contender: Callable[[Path], None]) -> float:
        """Seconds of one run, the data safely on the disk included."""
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            begin = time.monotonic()
            contender(Path(folder))
            for blob in self._blobs:
                sync(next(Path(folder).rglob(blob.name)))
            return time.monotonic() - begin


def sync(path: Path) -> None:
    """Wait until a file is on the disk; without what others have to write."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def measure(source: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all of it."""
    large, small, tiny = source / "large", source / "small", source / "tiny"
    block = os.urandom(16 * MIB)
    with large.open("wb") as out:
        for _ in range(options.large // 16):
            out.write(block)
    small.write_bytes(os.urandom(options.small * MIB))
    tiny.write_bytes(os.urandom(10_000))
    one = [Blob("large.safetensors", file=large)]
    fifty = [Blob(f"{number:03}.safetensors", file=small) for number in range(50)]
    hundred = [Blob(f"tiny-{number:03}.safetensors", file=tiny) for number in range(100)]
    listed = [{"name": blob.name, "file": str(blob.file)} for blob in [*one, *fifty, *hundred]]
    (source / "files.json").write_text(json.dumps({"files": listed}), encoding="utf-8")
    result: dict[str, Any] = {"large_mib": options.large, "small_mib": options.small, "rows": []}
    for shaped in (True, False):
        with network(source / "files.json", shaped) as link:
            for title, blobs in (("one large file", one), ("50 files", fifty)):
                result["rows"] += rows(Contest(work, blobs), title, link, options)
            if not shaped:
                result["unchanged_s"] = unchanged(Contest(work, hundred), work)
    reports = ROOT / "reports"
    reports.mkdir(exist_ok=True)
    (reports / "bench-models.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def rows(contest: Contest, title: str, link: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Let the two that are compared take turns, so that what else the machine does is spread over both."""
    contenders = {"bare aria2c": contest.bare, "wanmetal": contest.ours}
    if not options.only_compared:
        contenders["the original's script"] = contest.original
    if os.environ.get(HF):
        contenders["hf download"] = contest.hub
    times: dict[str, list[float]] = {name: [] for name in contenders}
    traffic: dict[str, int] = {}
    for turn in range(options.turns):
        for name, contender in contenders.items():
            if turn and name not in COMPARED:
                continue
            before = sent()
            times[name].append(contest.once(contender))
            print(f"{title}, {link}, {name}: {times[name][-1]:.1f} s", file=sys.stderr)
            traffic[name] = sent() - before
    fastest = statistics.median(times["bare aria2c"])
    return [
        {
            "files": title,
            "link": link,
            "by": name,
            "seconds": round(statistics.median(taken), 2),
            "all": [round(value, 2) for value in taken],
            "mb_per_s": round(contest.bytes / statistics.median(taken) / 1e6, 1),
            "of_bare": round(fastest / statistics.median(taken), 3),
            "traffic": round(traffic[name] / contest.bytes, 3),
            "peak_mb": round(contest.peak / 1e6, 1) if name == "wanmetal" else None,
        }
        for name, taken in times.items()
    ]


def unchanged(contest: Contest, work: Path) -> float:
    """Seconds of a run that finds a hundred files as they were, the start of Python included."""
    folder = work / "unchanged"
    folder.mkdir()
    contest.ours(folder)
    begin = time.monotonic()
    contest.ours(folder)
    taken = time.monotonic() - begin
    shutil.rmtree(folder)
    return round(taken, 2)


def print_table(result: dict[str, Any]) -> None:
    """Print it."""
    print(
        f"{'files':<15} {'link':<24} {'by':<22} {'seconds':>8} {'MB/s':>7} {'of bare':>8} {'traffic':>8} {'memory':>9}"
    )
    for row in result["rows"]:
        memory = f"{row['peak_mb']} MB" if row["peak_mb"] else ""
        print(
            f"{row['files']:<15} {row['link']:<24} {row['by']:<22} {row['seconds']:>8} {row['mb_per_s']:>7} "
            f"{row['of_bare']:>8} {row['traffic']:>8} {memory:>9}"
        )
    print(f"an unchanged run of 100 files: {result.get('unchanged_s')} s")


if __name__ == "__main__":
    main()
