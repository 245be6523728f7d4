"""Runs every test, several parts at a time.

What each part said is kept in reports/test, in STEP.log, or STEP-PART.log for each linter and scenario.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.lab import lab

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports/test"
STEPS = ("lint", "unit", "contract", "molecule", "e2e")
FAULTS = ("deploys", "fleet", "queue")
SLOW = ("default", "monitoring", "nodes", "queue", "sageattention", "services")  # scenarios that run with --full alone
LONGEST = (
    "e2e",
    "upgrade",
    "services",
    "queue",
    "monitoring",
    "nodes",
    "sageattention",
    "wan_models",
    "comfyui",
)  # are started first
ON_HOSTS = {"git": "git", "ssh": "openssh-client"}
# Programs that steps run, and the packages that bring them.
PROGRAMS = {
    "lint": {"git": "git"},
    "unit": {
        "aria2c": "aria2",
        "bwrap": "bubblewrap",
        "git": "git",
        "haproxy": "haproxy",
        "pg_ctlcluster": "postgresql",
        "promtool": "prometheus",
    },
    "contract": {**ON_HOSTS, "bwrap": "bubblewrap"},
    "deploys": {**ON_HOSTS, "mkfs.btrfs": "btrfs-progs"},
}
FIRST_DEPLOY = re.compile(r".*::test_first_lab_deploy (PASSED|FAILED)|.*> converge\] Executed")
CORES = len(os.sched_getaffinity(0))
MEMORY = Path("/dev/shm")  # noqa: S108


@dataclass(frozen=True)
class Part:
    """What runs on its own: a linter, a scenario, a run of pytest."""

    step: str
    name: str
    command: tuple[str, ...]
    shown: str = "$^"  # which of its lines are worth a look while it runs
    on_hosts: bool = False

    @property
    def title(self) -> str:
        return f"{self.step} {self.name}".strip()

    @property
    def log(self) -> Path:
        return REPORTS / f"{self.title.replace(' ', '-')}.log"


@dataclass(frozen=True)
class Result:
    part: Part
    status: int
    seconds: float
    passed: int
    failed: int
    said: str


IMAGE = Part("image", "", (sys.executable, "tests/lab/lab.py", "image"), shown=".")


def shell_scripts() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = []
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.suffix != ".j2":
            with path.open("rb") as file:
                if re.match(rb"#!.*[/ ](ba|da)?sh$", file.readline().strip()):
                    found.append(name)
    return found


def scenarios(full: bool) -> list[str]:
    names = sorted(file.parent.name for file in ROOT.glob("molecule/*/molecule.yml"))
    return [name for name in names if full or name not in SLOW]


def parts(step: str, full: bool) -> list[Part]:
    """What a step consists of."""
    pytest = ("pytest", "-m", "slow or not slow" if full else "not slow", "-rs", "--durations=10", "--durations-min=5")
    if step == "lint":
        linters = {
            "collection": ("tools/collection",),
            "ansible-lint": ("ansible-lint",),
            "mypy": ("mypy", "plugins", "services", "tests", "tools", "molecule"),
            "yamllint": ("yamllint", "--strict", "."),
            "ruff": ("ruff", "check", "."),
            "format": ("ruff", "format", "--check", "."),
            "shellcheck": ("shellcheck", *shell_scripts()),
        }
        return [Part(step, name, command) for name, command in linters.items()]
    left_out = "SKIPPED .* was NOT run"
    if step in {"unit", "contract"}:
        return [Part(step, "", (*pytest, f"--numprocesses={2 * CORES}", f"tests/{step}"), left_out)]
    if step == "molecule":
        # Scenarios make many things fail on purpose: their actions alone are shown.
        return [
            Part(step, name, ("molecule", "test", "--scenario-name", name), r"[A-Z]+ .*Execut(ing|ed: .*)$", True)
            for name in scenarios(full)
        ]
    if step in FAULTS:
        return [Part("faults", step, (sys.executable, "-m", f"tests.faults.{step}"), r"round |\| ", True)]
    shown = rf".* (PASSED|FAILED|ERROR|SKIPPED)\b.*%\]$|{left_out}"
    return [Part(step, "", (*pytest, "-vv", "tests/e2e"), shown, True)]


def in_order(wanted: Sequence[str], full: bool) -> list[Part]:
    """The image that hosts are made of, what needs hosts with the longest first, and what fills the gaps."""
    found = [part for step in wanted for part in parts(step, full)]

    def place(part: Part) -> tuple[bool, int]:
        name = part.name or part.step
        return not part.on_hosts, LONGEST.index(name) if name in LONGEST else len(LONGEST)

    return [IMAGE] * any(part.on_hosts for part in found) + sorted(found, key=place)


def counts(text: str) -> dict[str, int]:
    """What pytest's last line says: '3 failed, 2 passed in 1.2s'."""
    lines = [line for line in text.splitlines() if re.search(r"\b\d+ \w+.* in [\d.]+s\b", line)]
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", lines[-1])} if lines else {}


@contextlib.contextmanager
def in_memory(part: Part) -> Iterator[dict[str, str]]:
    """Unit tests make a hundred thousand small files: in memory, where there is space for them and programs may run."""
    space = os.statvfs(MEMORY) if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    if part.step != "unit" or not space or space.f_flag & os.ST_NOEXEC or space.f_bavail * space.f_frsize < 2 << 30:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="wanmetal-", dir=MEMORY, ignore_cleanup_errors=True) as folder:
        yield {"PYTEST_DEBUG_TEMPROOT": folder}


class Run:
    """Parts that several threads take from one list."""

    def __init__(self, todo: Sequence[Part]) -> None:
        self.todo = list(todo)
        self.results: list[Result] = []
        self._processes: set[subprocess.Popen[str]] = set()
        self._changed = threading.Condition()
        self._image = "wanted" if IMAGE in todo else "there"
        self._on_hosts: Part | None = None  # the first fetches the packages: two at once would each keep their own
        self._fetched = False
        self._stopped = False

    def say(self, text: str) -> None:
        print(f"test: {text}", flush=True)

    def work(self) -> None:
        while part := self._next():
            result = self._run(part)
            with self._changed:
                self.results.append(result)
                self._fetched |= part.on_hosts
                if part is IMAGE:
                    self._image = "there" if result.status == 0 else "missing"
                self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)

    def _next(self) -> Part | None:
        with self._changed:
            while self.todo and not self._stopped:
                for part in self.todo:
                    if part.on_hosts and (self._image == "wanted" or (self._on_hosts and not self._fetched)):
                        continue
                    if part.on_hosts:
                        self._on_hosts = self._on_hosts or part
                    self.todo.remove(part)
                    return part
                self._changed.wait()
            return None

    def _run(self, part: Part) -> Result:
        begun = time.monotonic()
        if part.on_hosts and self._image == "missing":
            part.log.write_text("there is no image to make hosts of\n")
            status = 1
        else:
            self.say(f"-- {part.title}")
            status = self._process(part)
        seconds = time.monotonic() - begun
        text = part.log.read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip(" =")]
        found = counts(text) if part.command[0] == "pytest" else {}
        bad = found.get("failed", 0) + found.get("error", 0) + found.get("errors", 0)
        passed = found.get("passed", 0) if found else int(status == 0 and part is not IMAGE)
        said = lines[-1].strip(" =") if found else ""
        result = Result(part, status, seconds, passed, max(bad, int(status != 0)), said)
        self.say(line(result))
        return result

    def _process(self, part: Part) -> int:
        shown = re.compile(part.shown)
        # By itself Molecule gives checkouts in folders of one name the same place.
        place = {"MOLECULE_EPHEMERAL_DIRECTORY": f"{lab.state_folder()}/molecule/{part.name}"}
        with (
            part.log.open("w") as log,
            in_memory(part) as memory,
            subprocess.Popen(
                part.command,
                cwd=ROOT,
                env={**os.environ, **place, **memory},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # so that all of it can be stopped
            ) as process,
        ):
            self._processes.add(process)
            assert process.stdout
            for text in process.stdout:
                log.write(text)
                log.flush()
                if part is self._on_hosts and FIRST_DEPLOY.match(text):
                    with self._changed:
                        self._fetched = True
                        self._changed.notify_all()
                if shown.match(text):
                    print(f"{part.title}: {text.rstrip()}", flush=True)
        self._processes.discard(process)
        return process.returncode


def line(result: Result) -> str:
    end = "passed" if result.status == 0 else "FAILED"
    return f"{result.part.title}: {end} in {result.seconds:.0f} s" + (f" ({result.said})" if result.said else "")


def need_programs(steps: Sequence[str]) -> None:
    needed = {program: package for step in steps for program, package in PROGRAMS.get(step, ON_HOSTS).items()}
    missing = {program: package for program, package in needed.items() if not shutil.which(program)}
    if missing and (os.geteuid() or not lab.apt_family()):
        raise lab.LabError(f"the tests run {', '.join(missing)}. Install these packages: {', '.join(missing.values())}")
    if missing:
        lab.install_packages(*missing.values())


@contextlib.contextmanager
def lab_of_its_own() -> Iterator[None]:
    """Nobody loses a host, and two runs at once do not meet: each takes the first folder that nobody uses."""
    if os.environ.get("WANMETAL_LAB_DIR"):
        yield
        return
    for number in range(1, 100):
        folder = Path("~/.cache/wanmetal").expanduser() / f"test-lab{'' if number == 1 else f'-{number}'}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / "used").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            os.environ["WANMETAL_LAB_DIR"] = str(folder)
            yield
            return


def run(wanted: Sequence[str], full: bool, jobs: int) -> bool:
    begun = time.monotonic()
    REPORTS.mkdir(parents=True, exist_ok=True)
    running = Run(in_order(wanted, full))
    if "molecule" in wanted and not full:
        running.say(f"left out without --full: {', '.join(SLOW)}")
    with ThreadPoolExecutor(jobs) as pool:
        workers = [pool.submit(running.work) for _ in range(jobs)]
        try:
            for worker in workers:
                worker.result()
        except BaseException:  # interrupted, or a part that could not even be started
            running.stop()
            raise
    bad = [result for result in running.results if result.status]
    for result in bad:
        running.say(f"the end of {result.part.log.relative_to(ROOT)}:")
        print("\n".join(result.part.log.read_text(errors="replace").splitlines()[-60:]))
    running.say(f"== summary, after {time.monotonic() - begun:.0f} s ==")
    for result in sorted(running.results, key=lambda result: result.part.title):
        running.say(f"  {line(result)}")
    print(f"{sum(r.passed for r in running.results)} passed, {sum(r.failed for r in running.results)} failed")
    return not bad


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="./test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("steps", nargs="*", metavar="STEP", choices=[*STEPS, []], help=f"{', '.join(STEPS)}; default: all")
    top.add_argument("--full", action="store_true", help=f"with the slow tests, and the scenarios {', '.join(SLOW)}")
    top.add_argument(
        "--faults",
        nargs="?",
        const="deploys",
        choices=FAULTS,
        help="nothing but faults at random: in deploys, in a fleet that does jobs, or in deploys of its queue",
    )
    top.add_argument("--list", action="store_true", help="show what each step would run")
    top.add_argument("--jobs", type=int, default=min(max(CORES, 2), 4), help="parts at a time; default: %(default)s")
    return top


def main() -> int:
    options = parser().parse_args()
    if options.list:
        for step in STEPS:
            print(f"{step}: {' '.join(part.name or part.title for part in parts(step, options.full))}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ["NO_COLOR"] = "1"  # what is kept in a log is read without a terminal
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # without it Ansible would be compiled at each of hundreds of starts
    try:
        steps = (options.faults,) if options.faults else options.steps or STEPS
        need_programs(steps)
        with lab_of_its_own():
            return 0 if run(steps, options.full, max(options.jobs, 1)) else 1
    except lab.LabError as error:
        print(f"test: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("test: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
