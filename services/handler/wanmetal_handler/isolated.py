"""Work on what strangers send, in processes that hold no secrets and can be killed at any moment.

A decoder, a name server or a host may take as long as it likes, and no thread can be stopped. So each piece of work
has a process of its own, forked from one that has everything loaded, with limits of CPU time and memory.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .failure import JobError
from .limit import Limit
from .settings import Settings

_NO_SECRETS = re.compile(r"(?i)PATH|HOME|LANG|TZ|\w+_proxy|SSL_CERT_\w+|\w+_CA_BUNDLE|BUCKET_(ENDPOINT_URL|REGION)")
_COMMAND = [sys.executable, "-c", "from wanmetal_handler.isolated import serve; serve()"]
_DONE, _FAILED = b"done", b"failed"


class _Source:
    """The process that the others are forked from. It is started when it is needed, and again when it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: tuple[Connection, int] | None = None

    def take(self) -> tuple[Connection, int]:
        """Return a connection to a new process, and a descriptor of the process."""
        with self._lock:
            ready, self._ready = self._ready, None
            if ready and select.select([ready[1]], [], [], 0)[0]:
                _discard(*ready)  # it has died
                ready = None
            return ready or self._fork()

    def prepare(self) -> None:
        """Have a process ready for the next piece of work, which would otherwise wait for it."""
        with self._lock, suppress(ChildProcessError):
            self._ready = self._ready or self._fork()

    def _fork(self) -> tuple[Connection, int]:
        for last in (False, True):
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    socket.send_fds(self._started(), [b"."], [theirs.fileno()])
                [process] = socket.recv_fds(ours, 1, 1)[1]
            except (OSError, ValueError) as error:
                ours.close()
                self._stop()
                if last:
                    raise ChildProcessError("no process can be started") from error
            else:
                return Connection(ours.detach()), process
        raise AssertionError

    def _started(self) -> socket.socket:
        if not self._process:
            self._link, theirs = socket.socketpair()
            environment = {name: value for name, value in os.environ.items() if _NO_SECRETS.fullmatch(name)}
            environment["MALLOC_ARENA_MAX"] = "2"  # each of many threads would reserve 128 MB, which the limit counts
            environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
            with theirs:
                self._process = subprocess.Popen(
                    _COMMAND, stdin=theirs.fileno(), env=environment, start_new_session=True
                )
        return self._link

    def _stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._link.close()
            self._process = None


def _discard(connection: Connection, process: int) -> None:
    connection.close()
    os.close(process)


_source = _Source()


def start() -> None:
    """Have everything loaded before the first piece of work comes."""
    _discard(*_source.take())
    _source.prepare()


def run(limit: Limit, seconds: float, memory: int, task: str, *arguments: Any) -> bytes:
    """Return what a task gives. Its process is killed when the job ends.

    TimeoutError says that it took more than ``seconds``, ChildProcessError that it died, for example because it needed
    more than ``memory``, in bytes.
    """
    limit.check()
    connection, process = _source.take()

    def kill() -> None:
        signal.pidfd_send_signal(process, signal.SIGKILL)

    try:
        with connection, closing(Limit(seconds)) as own, limit.ending(kill), own.ending(kill):
            end, answer = b"", b""
            with suppress(OSError, EOFError):  # it has died
                connection.send((seconds, memory, task, arguments))
                # What comes back is not unpickled: a decoder may have been taken over.
                end, answer = connection.recv_bytes(), connection.recv_bytes()
        limit.check()
        if not answer:
            raise TimeoutError if own.over.is_set() else ChildProcessError("its process has died")
    finally:
        with suppress(OSError):
            kill()
        os.close(process)
        threading.Thread(target=_source.prepare, daemon=True).start()
    if end != _DONE:
        kind, message, details = json.loads(answer)
        raise JobError(kind, message, **details)
    return answer


def serve() -> None:
    """Fork a process for each connection that comes, until the service ends."""
    from . import convert, media, output

    tasks: dict[str, Callable[..., bytes]] = {
        "read": media.read,
        "put": output.put,
        "post": media.post,
        "convert": convert.convert,
    }
    media.prepare()
    output.prepare(Settings.of(os.environ))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    gc.collect()
    gc.freeze()  # what is never written to is not copied
    with socket.socket(fileno=os.dup(0)) as link:
        while descriptors := socket.recv_fds(link, 1, 1)[1]:
            with socket.socket(fileno=descriptors[0]) as connection, suppress(OSError):
                process = os.fork()
                if not process:
                    link.close()
                    os.close(0)
                    # Not by the process that forks, which may die before, while this one keeps the connection open.
                    descriptor = os.pidfd_open(os.getpid())
                    socket.send_fds(connection, [b"."], [descriptor])
                    os.close(descriptor)
                    media.prepare()  # copies, before they are waited for, the pages that work writes to
                    _work(Connection(connection.detach()), tasks, pages)
                    os._exit(0)


def _work(connection: Connection, tasks: dict[str, Callable[..., bytes]], pages: int) -> None:
    end = _FAILED
    try:
        seconds, memory, task, arguments = connection.recv()  # from the service
        memory += pages * resource.getpagesize()
        for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, int(seconds) + 2)):
            resource.setrlimit(kind, (most, most))
        answer, end = tasks[task](*arguments), _DONE
    except EOFError:
        return  # there is nothing to do
    except JobError as error:
        answer = json.dumps([error.kind, str(error), error.details]).encode()
    except Exception as error:
        # What an unforeseen exception says may hold anything.
        answer = json.dumps(["internal", f"an error inside the handler: {type(error).__name__}", {}]).encode()
    connection.send_bytes(end)
    connection.send_bytes(answer)
