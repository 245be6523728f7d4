"""A queue for tests: a PostgreSQL of its own, the service, and workers on RunPod's SDK, each of which can be killed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[2]
SDKS = {"1.12.0": "handler", "1.10.1": "sdk"}
ENDPOINT = "any"


def environment(name: str) -> Path:
    """Python of one of tools/venv's environments."""
    subprocess.run([ROOT / "tools/venv", name], check=True, capture_output=True)
    return ROOT / f".venv/{name}/bin/python"


def until(true: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Wait until something holds; for minutes, since a machine may be busy."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"it did not happen within {seconds:g} s"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Database:
    """PostgreSQL in a folder of its own, as a user without rights, which it insists on."""

    def __init__(self, folder: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: float(path.parts[4]))
        assert found, "these tests need PostgreSQL (Debian and Ubuntu: apt-get install postgresql)"
        self.folder, self._bin = folder, found[-1].parent
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
            folder.chmod(0o755)
        self.data = folder / "data"
        self._run("initdb", "--no-sync", "-A", "trust", "-D", str(self.data))
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{folder}'\nlisten_addresses = ''\nmax_connections = 60\n")
        self.start()
        self._run("createdb", "-h", str(folder), "queue")

    @property
    def address(self) -> str:
        return f"host={self.folder} dbname=queue user={self._user}"

    def _run(self, program: str, *arguments: str) -> str:
        command = [str(self._bin / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-D", str(self.data), "-l", str(self.folder / "log"), "start")

    def kill(self) -> None:
        """End it as a power cut would."""
        self._run("pg_ctl", "-w", "-D", str(self.data), "-m", "immediate", "stop")

    def sql(self, statement: str, name: str = "queue") -> str:
        return self._run("psql", "-h", str(self.folder), "-AtX", "-c", statement, name).strip()


class Fleet:
    """The service and its workers."""

    def __init__(self, folder: Path, database: Database, **settings: str) -> None:
        self.database, self.folder, self.port = database, folder, free_port()
        self._python = environment("queue")
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "services/queue"),
            "QUEUE_DATABASE": database.address,
            "QUEUE_PORT": str(self.port),
            "QUEUE_WEBHOOK_ALLOW": "127.0.0.0/8",
            **{f"QUEUE_{name.upper()}": value for name, value in settings.items()},
        }
        self.log = folder / "workers.log"
        self.log.touch()
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.command("migrate")
        self.client = self.command("token-add", "client", "tests")
        self.host = self.command("token-add", "host", "host1")
        self.start()

    def command(self, *arguments: str, good: bool = True) -> str:
        code, said, problem = self.ran(*arguments)
        assert (code == 0) == good, said.decode() + problem
        return (said.decode() if good else problem).strip()

    def ran(self, *arguments: str, given: int = subprocess.DEVNULL) -> tuple[int, bytes, str]:
        """Run a command with a standard input; return its status, and what it has written."""
        command = [str(self._python), "-m", "wanmetal_queue", *arguments]
        done = subprocess.run(command, env=self._environment, stdin=given, capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr.decode()

    def start(self) -> None:
        with (self.folder / "queue.log").open("ab") as log:
            self._service = subprocess.Popen(
                [self._python, "-m", "wanmetal_queue", "serve"], env=self._environment, stderr=log
            )
        until(self.answers)

    def answers(self, port: int = 0, leads: bool = True) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"http://127.0.0.1:{port or self.port}/health", timeout=5).json().get("leads") is leads
        return False

    @contextlib.contextmanager
    def another(self) -> Iterator[int]:
        """A second service on the same database, at this port."""
        port = free_port()
        command = [str(self._python), "-m", "wanmetal_queue", "serve"]
        with subprocess.Popen(command, env={**self._environment, "QUEUE_PORT": str(port)}) as service:
            try:
                until(lambda: self.answers(port, leads=False))
                yield port
            finally:
                service.terminate()

    def stop(self, sign: int = signal.SIGTERM) -> None:
        self._service.send_signal(sign)
        self._service.wait(30)

    def ask(self, path: str, body: Any = None, *, token: str = "", endpoint: str = ENDPOINT) -> requests.Response:
        """Ask as a client does."""
        url = f"http://127.0.0.1:{self.port}/v2/{endpoint}/{path}"
        headers = {"Authorization": f"Bearer {token or self.client}"}
        return requests.request("GET" if body is None else "POST", url, json=body, headers=headers, timeout=100)

    def call(self, path: str, body: Any = None, *, status: int = 200, token: str = "", endpoint: str = ENDPOINT) -> Any:
        answer = self.ask(path, body, token=token, endpoint=endpoint)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def run(self, id_: str, given: Any, **more: Any) -> Any:
        return self.call("run", {"id": id_, "input": given, **more})

    def status(self, id_: str) -> str:
        return str(self.call(f"status/{id_}")["status"])

    def south(self, path: str, body: Any = None, token: str = "", query: str = "", timeout: float = 60) -> Any:
        """Ask as a worker does."""
        url = f"http://127.0.0.1:{self.port}/v2/{ENDPOINT}/{path}?x=y{query}"
        headers = {"Authorization": token or self.host, "Content-Type": "application/x-www-form-urlencoded"}
        return requests.request("GET" if body is None else "POST", url, json=body, headers=headers, timeout=timeout)

    def take(self, pod: str = "pod", query: str = "") -> Any:
        answer = self.south(f"job-take/{pod}", query=f"&job_in_progress=0{query}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def done(self, pod: str, id_: str, result: Any) -> None:
        answer = self.south(f"job-done/{pod}/{id_}", result)
        assert answer.status_code == 200, answer.text

    def worker(self, pod: str, sdk: str = "1.12.0", port: int = 0, **more: str) -> subprocess.Popen[bytes]:
        """Start one on RunPod's SDK, in a process group of its own."""
        south = f"http://127.0.0.1:{port or self.port}/v2/{ENDPOINT}"
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "RUNPOD_AI_API_KEY": self.host,
            "RUNPOD_POD_ID": pod,
            "RUNPOD_WEBHOOK_GET_JOB": f"{south}/job-take/$ID?x=y",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{south}/job-done/$RUNPOD_POD_ID/$ID?x=y",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{south}/job-stream/$RUNPOD_POD_ID/$ID?x=y",
            "RUNPOD_WEBHOOK_PING": f"{south}/ping/$RUNPOD_POD_ID?x=y",
            "RUNPOD_PING_INTERVAL": "2000",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "WORKER_LOG": str(self.log),
            **more,
        }
        with (self.folder / f"{pod}.log").open("ab") as log:
            command = [environment(SDKS[sdk]), ROOT / "tests/queue/worker.py"]
            process = subprocess.Popen(
                command, env=environ, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        self.workers[pod] = process
        return process

    def kill_worker(self, pod: str, group: bool = True) -> None:
        """End a worker as a crash would; its process that pings lives on without ``group``."""
        process = self.workers[pod]
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()

    def starts(self, id_: str) -> list[str]:
        """Which workers have begun a job, in their order."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [pod for pod, job, what in lines if job == id_ and what != "stopped"]

    def close(self) -> None:
        for pod in self.workers:
            self.kill_worker(pod)
        if self._service.poll() is None:
            self.stop(signal.SIGKILL)


@contextlib.contextmanager
def fleet(**settings: str) -> Iterator[Fleet]:
    """All of it, in a folder whose path is short, since it holds sockets."""
    with tempfile.TemporaryDirectory(prefix="queue") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "database").mkdir()
        database = Database(folder / "database")
        try:
            running = Fleet(folder, database, **settings)
            try:
                yield running
            finally:
                running.close()
        finally:
            with contextlib.suppress(AssertionError):
                database.kill()
