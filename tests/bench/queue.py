#!/usr/bin/env python3
"""How many jobs the queue passes on, and how fast, with 1,000 workers that only ask: docs/scale.md.

    export PYTHONPATH=.ansible/collections:services/handler
    .venv/test/bin/python -m tests.bench.queue                  # on a quiet machine; its PostgreSQL is its own
    .venv/test/bin/python -m tests.bench.queue --workers 100

Workers and clients run in one process beside the service, so they share its processors: a queue alone does more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any

from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_service import GOOD, serving
from wanmetal_handler.fleet import Fleet as Taker

from tests.queue.fleet import ENDPOINT, Fleet, fleet

JOBS, RATE, RATE_S = 5000, 17, 30  # 1,000 workers whose jobs take 60 s need 17 jobs a second
FEW, MANY, TAKEN = 10, 10_000, 300


class Connection:
    """One that is kept, with one request at a time."""

    def __init__(self, queue: Fleet, token: str) -> None:
        self._port, self._token = queue.port, token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        try:
            return await self._ask(path, body)
        except (asyncio.IncompleteReadError, ConnectionError):  # it was ended just now
            self.close()
            self._streams = None
            return await self._ask(path, body)

    async def _ask(self, path: str, body: Any) -> tuple[int, Any]:
        if not self._streams or self._streams[0].at_eof():  # the service ends one that is not used for 5 s
            self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{'GET' if body is None else 'POST'} /v2/{ENDPOINT}/{path} HTTP/1.1\r\nHost: queue\r\n"
        head += f"Authorization: Bearer {self._token}\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = answered.partition("content-length:")[2].split("\r\n")[0]
        text = await reader.readexactly(int(length or 0))
        status = int(answered.split(" ", 2)[1])
        assert status in {200, 204, 429}, f"{path} was answered with {status} {text!r}"
        return status, json.loads(text) if text else None

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()


class Crowd:
    """Workers that ask for jobs, end each at once, and ask all the time what they are to stop."""

    def __init__(self, queue: Fleet, size: int) -> None:
        self._queue, self._size = queue, size
        self.posted: dict[str, float] = {}
        self.took: list[float] = []
        self.ended = self.refused = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def _listen(self, number: int) -> None:
        connection = Connection(self._queue, self._queue.host)
        try:
            while True:
                await connection.ask(f"job-stop/pod{number}")
        finally:
            connection.close()

    async def _work(self, number: int) -> None:
        connection, result = Connection(self._queue, self._queue.host), Connection(self._queue, self._queue.host)
        try:
            while True:
                status, job = await connection.ask(f"job-take/pod{number}?job_in_progress=0")
                if status == 429:
                    self.refused += 1
                    await asyncio.sleep(5)  # as RunPod's SDK does
                if status == 200:
                    self.took.append(time.perf_counter() - self.posted[job["id"]])
                    await result.ask(f"job-done/pod{number}/{job['id']}?x=y", {"output": 1})
                    self.ended += 1
        finally:
            connection.close()
            result.close()

    async def __aenter__(self) -> Crowd:
        for number in range(self._size):
            self._tasks += [asyncio.create_task(self._work(number)), asyncio.create_task(self._listen(number))]
        begun = time.perf_counter()
        while int(self._queue.database.sql("SELECT count(*) FROM workers")) < self._size:
            await asyncio.sleep(0.1)
        self.joined_s = time.perf_counter() - begun
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def end_of(self, jobs: int) -> None:
        while self.ended < jobs:
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)

    async def post(self, client: Connection, name: str) -> None:
        self.posted[name] = time.perf_counter()
        status, answer = await client.ask("run", {"id": name, "input": {}})
        assert status == 200, answer


def percent(values: list[float], hundredth: int) -> float:
    return quantiles(values, n=100, method="inclusive")[hundredth - 1] * 1000


def processor_s(processes: Iterator[Path]) -> float:
    """Seconds of processor that processes have had."""
    ticks = 0
    for process in processes:
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # with those of its children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def service() -> Iterator[Path]:
    """The process of the queue that this one has started."""
    own = str(os.getpid())
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "stat").read_text().rpartition(")")[2].split()[1] == own:
                yield process
        except OSError:
            continue


def postgresql(data: Path) -> Callable[[], Iterator[Path]]:
    """All processes of the PostgreSQL that has its data there."""

    def found() -> Iterator[Path]:
        main = int((data / "postmaster.pid").read_text().split()[0])
        yield Path(f"/proc/{main}")
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "stat").read_text().rpartition(")")[2].split()[1] == str(main):
                    yield process
            except OSError:
                continue

    return found


async def throughput(queue: Fleet, workers: int) -> dict[str, float]:
    """Empty jobs, posted by 32 clients as fast as they can."""
    async with Crowd(queue, workers) as crowd:
        numbers = count()

        async def client() -> None:
            connection = Connection(queue, queue.client)
            while (number := next(numbers)) < JOBS:
                await crowd.post(connection, f"many{number}")
            connection.close()

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(32)))
        await crowd.end_of(JOBS)
        return {"jobs_per_s": JOBS / (time.perf_counter() - begun)}


async def steady(queue: Fleet, workers: int) -> dict[str, float]:
    """As many jobs as 1,000 workers need whose jobs take a minute: how soon an idle worker has each, at what cost."""
    async with Crowd(queue, workers) as crowd:
        await asyncio.sleep(10)  # all wait now
        connection, database = Connection(queue, queue.client), postgresql(queue.database.data)
        service_s, database_s = processor_s(service()), processor_s(database())
        begun = time.perf_counter()
        for number in range(RATE * RATE_S):
            await asyncio.sleep(begun + number / RATE - time.perf_counter())
            await crowd.post(connection, f"steady{number}")
        await crowd.end_of(RATE * RATE_S)
        seconds = time.perf_counter() - begun
        connection.close()
        return {
            "all_workers_joined_s": crowd.joined_s,
            "answers_429": crowd.refused,
            "idle_worker_has_a_job_p50_ms": percent(crowd.took, 50),
            "idle_worker_has_a_job_p99_ms": percent(crowd.took, 99),
            "service_processors": (processor_s(service()) - service_s) / seconds,
            "postgresql_processors": (processor_s(database()) - database_s) / seconds,
        }


async def waiting(queue: Fleet, jobs: int) -> dict[str, float]:
    """How long a worker waits for an answer while so many jobs wait."""
    client = Connection(queue, queue.client)

    async def post(number: int) -> None:
        status, answer = await client.ask("run", {"id": f"waits{jobs}-{number}", "input": {}})
        assert status == 200, answer

    for number in range(jobs):
        await post(number)
    worker, took = Connection(queue, queue.host), []
    for number in range(TAKEN):
        begun = time.perf_counter()
        status, job = await worker.ask(f"job-take/pod?job_in_progress={min(number, 1)}")
        took.append(time.perf_counter() - begun)
        assert status == 200, job
        await worker.ask(f"job-done/pod/{job['id']}?x=y", {"output": 1})
        await post(jobs + number)
    await client.ask("purge-queue", {})
    client.close()
    worker.close()
    return {
        f"take_with_{jobs}_waiting_p50_ms": percent(took, 50),
        f"take_with_{jobs}_waiting_p99_ms": percent(took, 99),
    }


async def added(queue: Fleet, jobs: int) -> dict[str, float]:
    """What the queue adds to a job of a handler whose ComfyUI answers at once, both ways in turn."""
    direct, queued = [], []
    client = Connection(queue, queue.client)
    where: dict[str, Any] = {"queue_url": f"http://127.0.0.1:{queue.port}", "queue_token": queue.host}
    with scripted() as (_fake, url), serving(queue.folder, url, **where) as handler, closing(Taker(handler)):
        for number in range(jobs):
            await asyncio.sleep(0.1)  # it asks for the next one
            begun = time.perf_counter()
            await asyncio.to_thread(handler.accept, f"direct{number}", GOOD)
            await handler.ended(f"direct{number}")
            direct.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            status, answer = await client.ask("runsync", {"id": f"queued{number}", "input": GOOD})
            assert (status, answer["status"]) == (200, "COMPLETED"), answer
            queued.append(time.perf_counter() - begun)
    client.close()
    return {"handler_alone_p50_ms": percent(direct, 50), "handler_by_queue_p50_ms": percent(queued, 50)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=1000)
    workers = options.parse_args().workers
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for the service, too
    parts: list[tuple[Callable[[Fleet, int], Coroutine[Any, Any, dict[str, float]]], int]] = [
        (waiting, FEW),
        (waiting, MANY),
        (added, TAKEN),
        (steady, workers),
        (throughput, workers),
    ]
    print(f"processors {os.cpu_count()}\nworkers {workers}\nload_before {os.getloadavg()[0]:.2f}", flush=True)
    for part, given in parts:
        with fleet(waiting="20000") as queue:
            for name, value in asyncio.run(part(queue, given)).items():
                print(f"{name} {value:.2f}", flush=True)


if __name__ == "__main__":
    main()
