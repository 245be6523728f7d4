"""The jobs in PostgreSQL. Each change of a job's state is one statement, so it is whole or has not happened."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from .settings import Settings
from .waiters import Need, Waiters, Worker

_log = logging.getLogger("queue")
Row = dict[str, Any]
OPEN = ("IN_QUEUE", "IN_PROGRESS")
_NEWS, _LEADER = "wanmetal_queue", 7239402
# However many workers look for jobs at once, some connections are left for all else.
_CONNECTIONS, _TAKES, _TURN_S = 12, 6, 15.0

_TOLD = "pg_notify('wanmetal_queue', json_build_array('job', queue, vram, workflow, release)::text)"
_ENDED = "pg_notify('wanmetal_queue', json_build_array('end', id)::text)"
# What ends a job without its worker: whoever still works at it is told to stop.
_STOPPING = """
, stop AS (INSERT INTO stops (worker, job) SELECT unnest(holders), id FROM ended ON CONFLICT DO NOTHING)
SELECT id, pg_notify('wanmetal_queue', '["stop"]'), """
_END = """finished = %(now)s, worker = NULL, progress = NULL,
  webhook_due = CASE WHEN webhook IS NOT NULL THEN %(now)s END"""

ACCEPT = f"""
WITH new AS (
  INSERT INTO jobs (id, endpoint, queue, client, priority, vram, workflow, release, input, secret, webhook, created,
                    expires, timeout)
  VALUES (%(id)s, %(endpoint)s, %(queue)s, %(client)s, %(priority)s, %(vram)s, %(workflow)s, %(release)s, %(input)s,
          %(secret)s, %(webhook)s, %(now)s, %(now)s + %(ttl)s, %(timeout)s)
  ON CONFLICT (id) DO NOTHING RETURNING *)
SELECT id, {_TOLD} FROM new"""
TAKE = """
WITH next AS (
  SELECT id FROM jobs
  WHERE status = 'IN_QUEUE' AND queue = ANY(%(queues)s) AND vram <= %(vram)s AND release IN ('', %(release)s)
    AND (workflow = '' OR %(workflows)s::text[] IS NULL OR workflow = ANY(%(workflows)s::text[]))
    AND NOT EXISTS (SELECT FROM state WHERE jobs.queue = ANY(paused))
  ORDER BY priority DESC, number LIMIT %(batch)s FOR UPDATE SKIP LOCKED)
UPDATE jobs SET status = 'IN_PROGRESS', worker = %(worker)s, attempt = attempt + 1, taken = %(now)s,
  holders = array_append(array_remove(holders, %(worker)s), %(worker)s)
FROM next WHERE jobs.id = next.id RETURNING jobs.id, input, secret, attempt, priority, number"""
# A worker was lost with these jobs: others get them, until it has happened too often.
REQUEUE = f"""
WITH lost AS (SELECT id FROM jobs WHERE status = 'IN_PROGRESS' AND {{which}} FOR UPDATE SKIP LOCKED),
moved AS (
  UPDATE jobs SET losses = losses + 1, worker = NULL, progress = NULL,
    status = CASE WHEN losses + 1 < %(attempts)s THEN 'IN_QUEUE' ELSE 'FAILED' END,
    error = CASE WHEN losses + 1 < %(attempts)s THEN NULL
            ELSE 'the worker was lost while the job ran, ' || (losses + 1) || ' times; it is not tried again' END,
    finished = CASE WHEN losses + 1 < %(attempts)s THEN NULL ELSE %(now)s END,
    webhook_due = CASE WHEN webhook IS NOT NULL AND losses + 1 >= %(attempts)s THEN %(now)s END
  FROM lost WHERE jobs.id = lost.id RETURNING jobs.*),
gone AS (DELETE FROM chunks USING moved WHERE chunks.job = moved.id)
SELECT id, status, CASE status WHEN 'IN_QUEUE' THEN {_TOLD} ELSE {_ENDED} END FROM moved"""
# The first result wins, of whoever was given the job. The others are told to stop.
DONE = f"""
WITH ended AS (
  UPDATE jobs SET status = %(status)s, output = %(output)s, error = %(error)s, {_END},
    secret = CASE WHEN %(status)s = 'FAILED' THEN secret END
  WHERE id = %(id)s AND status IN ('IN_QUEUE', 'IN_PROGRESS') AND %(worker)s = ANY(holders) RETURNING *),
done AS (DELETE FROM stops WHERE job = %(id)s AND worker = %(worker)s),
stop AS (
  INSERT INTO stops (worker, job) SELECT other, id FROM ended, unnest(holders) AS other WHERE other <> %(worker)s
  ON CONFLICT DO NOTHING RETURNING pg_notify('wanmetal_queue', '["stop"]'))
SELECT id, {_ENDED}, (SELECT count(*) FROM stop) FROM ended"""
PROGRESS = "UPDATE jobs SET progress = %(output)s WHERE id = %(id)s AND status = 'IN_PROGRESS' AND worker = %(worker)s"
CHUNK = """INSERT INTO chunks (job, output)
SELECT id, %(output)s FROM jobs WHERE id = %(id)s AND status = 'IN_PROGRESS' AND worker = %(worker)s"""
CANCEL = f"""
WITH ended AS (
  UPDATE jobs SET status = 'CANCELLED', secret = NULL, {_END}
  WHERE id = %(id)s AND endpoint = %(endpoint)s AND status IN ('IN_QUEUE', 'IN_PROGRESS') RETURNING *)
{_STOPPING} {_ENDED} FROM ended"""
PURGE = f"""
WITH ended AS (
  UPDATE jobs SET status = 'CANCELLED', secret = NULL, {_END}
  WHERE endpoint = %(endpoint)s AND status = 'IN_QUEUE' RETURNING *)
SELECT id, {_ENDED} FROM ended"""
RETRY = f"""
WITH gone AS (DELETE FROM stops WHERE job = %(id)s),
again AS (
  UPDATE jobs SET status = 'IN_QUEUE', created = %(now)s, expires = %(now)s + (expires - created), taken = NULL,
    finished = NULL, output = NULL, error = NULL, holders = '{{}}', losses = 0, retried = true, webhook_due = NULL,
    webhook_tries = 0, number = nextval('jobs_number_seq')
  WHERE id = %(id)s AND endpoint = %(endpoint)s AND status IN ('FAILED', 'TIMED_OUT') RETURNING *)
SELECT id, {_TOLD} FROM again"""
EXPIRE = f"""
WITH over AS (
  SELECT id FROM jobs WHERE status IN ('IN_QUEUE', 'IN_PROGRESS') AND expires < %(now)s
  UNION SELECT id FROM jobs WHERE status = 'IN_PROGRESS' AND taken + timeout < %(now)s LIMIT 500),
mine AS (SELECT id FROM jobs WHERE id IN (SELECT id FROM over) AND status IN ('IN_QUEUE', 'IN_PROGRESS')
         FOR UPDATE SKIP LOCKED),
ended AS (
  UPDATE jobs SET status = 'TIMED_OUT', {_END}, error = CASE
    WHEN expires < %(now)s THEN 'the job was not done within its time to live'
    ELSE 'the job ran longer than it may' END
  FROM mine WHERE jobs.id = mine.id RETURNING jobs.*)
{_STOPPING} {_ENDED} FROM ended"""
PRUNE = """DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE finished < %(before)s AND webhook_due IS NULL
ORDER BY finished LIMIT 500 FOR UPDATE SKIP LOCKED)"""
READ_CHUNKS = """WITH first AS (SELECT number FROM chunks WHERE job = %(id)s ORDER BY number LIMIT 1000 FOR UPDATE),
read AS (DELETE FROM chunks USING first WHERE chunks.number = first.number RETURNING chunks.*)
SELECT output FROM read ORDER BY number"""
WORKER = """
INSERT INTO workers VALUES (%(name)s, %(host)s, %(run)s, %(queues)s, %(vram)s, %(workflows)s, %(release)s, %(now)s)
ON CONFLICT (name) DO UPDATE SET run = excluded.run, queues = excluded.queues, vram = excluded.vram,
  workflows = excluded.workflows, release = excluded.release, seen = excluded.seen
RETURNING pg_notify('wanmetal_queue', json_build_array('worker', name)::text)"""
SEEN = """UPDATE workers SET seen = greatest(workers.seen, given.seen)
FROM unnest(%(names)s::text[], %(times)s::float8[]) AS given (name, seen) WHERE workers.name = given.name"""
LOST = """EXISTS (SELECT FROM workers WHERE workers.name = jobs.worker
AND greatest(workers.seen, jobs.taken) < %(now)s - %(lost_after)s)"""
HEALTH = """SELECT status, count(*) AS number, count(*) FILTER (WHERE retried OR losses > 0) AS retried FROM jobs
WHERE endpoint = %(endpoint)s GROUP BY status"""

COUNTS = """SELECT
  (SELECT jsonb_object_agg(status, number)
    FROM (SELECT status, count(*) AS number FROM jobs GROUP BY 1) AS found) AS jobs,
  (SELECT max(%(now)s - created) FROM jobs WHERE status = 'IN_QUEUE') AS oldest,
  (SELECT count(DISTINCT host) FROM workers WHERE seen > %(now)s - %(s)s) AS hosts"""


class TextError(Exception):
    """A text holds what PostgreSQL cannot keep."""


class AwayError(Exception):
    """The database cannot be used now."""


class GoneError(Exception):
    """Who asks for a job is no longer there."""


class Store:
    """The jobs, and what is known of hosts and workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.waiters = settings, Waiters()
        self.tokens: dict[str, Row] = {}
        self.workers: dict[str, Worker] = {}
        self.stops: dict[str, dict[str, float]] = {}  # by worker, each job with when it is told next
        self.seen: dict[str, float] = {}
        self.leader = False
        self._base, self._grace, self._waiting = 0.0, 0.0, {}  # type: float, float, dict[str, tuple[float, int]]
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            settings.database,
            min_size=2,
            max_size=_CONNECTIONS,
            open=False,
            reconnect_timeout=5,  # its pauses double, and a long outage would be followed by one as long
            kwargs={"autocommit": True, "row_factory": dict_row},
            configure=_configured,
        )
        self._takes = asyncio.Semaphore(_TAKES)
        self._tasks: list[asyncio.Task[None]] = []

    # -- time: no wall clock, which may be moved, once the queue has begun

    def now(self) -> float:
        """Seconds that the queue has lived, on from the day's time at its first start."""
        return self._base + time.clock_gettime(time.CLOCK_BOOTTIME)

    async def _keep_time(self) -> None:
        """Go on from where the queue was. The one that leads writes its time down, others take it over."""
        uptime, boot = time.clock_gettime(time.CLOCK_BOOTTIME), Path("/proc/sys/kernel/random/boot_id").read_text()
        if self.leader and self._base:
            await self.sql("UPDATE state SET tick = %(now)s, boot = %(boot)s, uptime = %(up)s", boot=boot, up=uptime)
            return
        [row] = await self.sql("SELECT *, extract(epoch FROM clock_timestamp())::float8 AS wall FROM state")
        if row["boot"] == boot and row["uptime"] <= uptime:
            self._base = row["tick"] - row["uptime"]
        elif self.leader or not self._base:
            self._base = max(row["tick"], row["wall"]) - uptime
        elif abs(row["tick"] - self.now()) > 2:
            self._base = row["tick"] - uptime

    # -- the database

    async def sql(self, statement: str, wait: float = 5.0, once: bool = False, **values: Any) -> list[Row]:
        """Do one statement. While the database is away it is tried again, for so many seconds."""
        until = time.monotonic() + wait
        while True:
            try:
                async with self._pool.connection(timeout=max(0.5, until - time.monotonic())) as connection:
                    answer = await connection.execute(statement, {"now": self.now(), **values})
                    return await answer.fetchall() if answer.description else []
            except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, UnicodeEncodeError) as error:
                raise TextError("a text is too long, or has a NUL or half of a surrogate pair in it") from error
            except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
                # Nobody could reach the queue, so nobody is lost yet.
                self._grace = time.monotonic() + self.settings.lost_after
                if time.monotonic() >= until or (once and not isinstance(error, PoolTimeout)):
                    _log.warning("the database cannot be used: %s", str(error).splitlines()[:1])
                    raise AwayError(str(error)) from error
                await asyncio.sleep(0.2)

    async def start(self) -> None:
        """Begin, as soon as the database is there."""
        await self._pool.open()
        self._grace = time.monotonic() + self.settings.lost_after
        while not self._base:
            try:
                await self._keep_time()
                await self.reload()
            except AwayError:
                continue
        self._tasks = [asyncio.create_task(task) for task in (self._listen(), self._sweep())]

    async def close(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        with suppress(AwayError):
            await self._flush()
        await self._pool.close()

    async def reload(self) -> None:
        """Read who may come, and what workers have said that they can do; wake those of whom it has changed."""
        tokens = await self.sql("SELECT * FROM tokens")
        workers = await self.sql("SELECT * FROM workers")
        await self._reload_stops()
        before, self.tokens = self.tokens, {row["hash"]: row for row in tokens}
        self.workers = {row["name"]: _worker(row) for row in workers}
        same = {row["name"] for row in tokens if before.get(row["hash"]) == row}
        self.waiters.those(lambda worker: worker.host not in same or self._superseded(worker))

    def _superseded(self, worker: Worker) -> bool:
        # The table may have been read just before this one was written to it.
        return self.workers.get(worker.name, worker).run != worker.run

    async def _reload_stops(self) -> None:
        before, self.stops = self.stops, {}
        for row in await self.sql("SELECT worker, job FROM stops"):
            self.stops.setdefault(row["worker"], {})[row["job"]] = before.get(row["worker"], {}).get(row["job"], 0.0)
        for worker in self.stops:
            self.waiters.other(f"stop {worker}")

    async def _listen(self) -> None:
        """Hear what happened, here or in another service. Who leads is who holds the lock of this connection."""
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(self.settings.database, autocommit=True)
                async with connection:
                    await connection.execute(f"LISTEN {_NEWS}")
                    await self.reload()
                    self.waiters.everybody()  # nobody knows what was missed
                    while True:
                        if not self.leader:
                            found = await connection.execute("SELECT pg_try_advisory_lock(%s)", (_LEADER,))
                            self.leader = bool((await found.fetchone() or [False])[0])
                        else:
                            await connection.execute("SELECT 1")
                        async for note in connection.notifies(timeout=10.0):
                            await self._heard(json.loads(note.payload))
            except (psycopg.Error, AwayError, OSError) as error:
                self.leader = False
                self._grace = time.monotonic() + self.settings.lost_after
                _log.warning("the database does not tell its news: %s", str(error).splitlines()[:1])
                await asyncio.sleep(0.5)

    async def _heard(self, news: Sequence[Any]) -> None:
        match news:
            case ["job", queue, vram, workflow, release]:
                self.waiters.job(Need(queue, vram, workflow, release))
            case ["end", id_]:
                self.waiters.other(f"end {id_}")
            case ["stop"]:
                await self._reload_stops()
            case ["worker", name]:
                for row in await self.sql("SELECT * FROM workers WHERE name = %(name)s", name=name):
                    self.workers[name] = _worker(row)
                self.waiters.those(lambda worker: worker.name == name and self._superseded(worker))
            case ["resume"]:
                self.waiters.everybody()
            case _:
                await self.reload()

    async def _flush(self) -> None:
        seen, self.seen = self.seen, {}
        if seen:
            await self.sql(SEEN, names=list(seen), times=list(seen.values()))

    async def _sweep(self) -> None:
        """Each second: who was seen, and, in the service that leads, what is lost, over or old."""
        settings = self.settings
        while True:
            await asyncio.sleep(1)
            try:
                await self._keep_time()
                await self._flush()
                if not self.leader:
                    continue
                if time.monotonic() > self._grace:
                    await self.requeue(LOST, lost_after=settings.lost_after)
                await self.sql(EXPIRE)
                await self.sql(PRUNE, before=self.now() - settings.keep_hours * 3600)
                await self.sql("DELETE FROM stops WHERE sent >= 5")
                await self.sql("DELETE FROM workers WHERE seen < %(now)s - 604800")
            except AwayError:
                pass
            except Exception:
                _log.exception("the queue could not look after its jobs")

    # -- what clients ask for

    async def accept(self, values: Mapping[str, Any]) -> bool:
        """Write a new job down. False says that its id is known."""
        found = await self.sql(ACCEPT, **values)
        if found:
            at, number = self._waiting.get(values["queue"], (0.0, 0))
            self._waiting[values["queue"]] = (at, number + 1)
        return bool(found)

    async def full(self, queue: str) -> bool:
        """Say whether as many jobs wait as may. They are counted each second, and before anybody is refused."""
        at, number = self._waiting.get(queue, (0.0, 0))
        if number >= self.settings.waiting or time.monotonic() - at > 1:
            statement = "SELECT count(*) AS number FROM jobs WHERE status = 'IN_QUEUE' AND queue = %(queue)s"
            [row] = await self.sql(statement, queue=queue)
            number = row["number"]
            self._waiting[queue] = (time.monotonic(), number)
        return number >= self.settings.waiting

    async def job(self, endpoint: str, id_: str) -> Row | None:
        """Return a job."""
        found = await self.sql(
            "SELECT * FROM jobs WHERE id = %(id)s AND endpoint = %(endpoint)s", id=id_, endpoint=endpoint
        )
        return found[0] if found else None

    async def ended(self, endpoint: str, id_: str, seconds: float) -> Row | None:
        """Return a job when it has ended, or after so many seconds."""
        until = time.monotonic() + seconds
        with self.waiters.of(f"end {id_}") as event:
            while True:
                job = await self.job(endpoint, id_)
                left = until - time.monotonic()
                if job is None or job["status"] not in OPEN or left <= 0:
                    return job
                await _slept(event, min(left, 5.0))

    # -- what workers ask for

    async def known(self, worker: Worker) -> None:
        """Note what a worker says of itself. One that was started anew has lost what it had."""
        before = self.workers.get(worker.name)
        told = (worker.queues, worker.vram, worker.workflows, worker.release, worker.run)
        if before and told == (before.queues, before.vram, before.workflows, before.release, before.run):
            return
        lists: Row = {
            "queues": list(worker.queues),
            "workflows": None if worker.workflows is None else [*worker.workflows],
        }
        plain: Row = {"name": worker.name, "host": worker.host, "vram": worker.vram, "release": worker.release}
        await self.sql(WORKER, _TURN_S, run=worker.run, **lists, **plain)
        self.workers[worker.name] = worker
        if before and before.run != worker.run:
            await self.forget(worker.name)

    async def take(self, worker: Worker, batch: int, there: Callable[[], Awaitable[bool]]) -> list[Row]:
        """Give jobs to a worker that is there. It is tried once: jobs given twice would be known to nobody."""
        async with self._takes:
            if self._superseded(worker) or not await there():
                raise GoneError
            worker.event.clear()
            rows = await self.sql(
                TAKE,
                _TURN_S,
                once=True,
                worker=worker.name,
                queues=list(worker.queues),
                vram=worker.vram,
                workflows=None if worker.workflows is None else list(worker.workflows),
                release=worker.release,
                batch=batch,
            )
            worker.woken_for = None
        return sorted(rows, key=lambda row: (-row["priority"], row["number"]))

    async def forget(self, worker: str) -> None:
        """Take back all that a worker is said to do, since it does nothing."""
        await self.requeue("worker = %(worker)s", _TURN_S, worker=worker)
        if self.stops.pop(worker, None):
            await self.sql("DELETE FROM stops WHERE worker = %(worker)s", worker=worker)

    async def requeue(self, which: str, wait: float = 5.0, **values: Any) -> None:
        """Take jobs back from workers that were lost with them."""
        for row in await self.sql(REQUEUE.format(which=which), wait, attempts=self.settings.attempts, **values):
            _log.info("job %s was lost with its worker, and is %s", row["id"], row["status"])

    async def to_stop(self, worker: str, seconds: float) -> list[str]:
        """Wait for jobs that a worker is to stop. One is told again until the worker is known not to have it."""
        until = time.monotonic() + seconds
        with self.waiters.of(f"stop {worker}") as event:
            while True:
                now = time.monotonic()
                waiting = self.stops.get(worker, {})
                if due := [id_ for id_, at in waiting.items() if at <= now]:
                    waiting.update(dict.fromkeys(due, now + 2.0))
                    statement = "UPDATE stops SET sent = sent + 1 WHERE worker = %(worker)s AND job = ANY(%(jobs)s)"
                    with suppress(AwayError):
                        await self.sql(statement, worker=worker, jobs=due)
                    return due
                if (left := until - now) <= 0:
                    return []
                await _slept(event, min([left, *(at - now for at in waiting.values())]))


async def _configured(connection: psycopg.AsyncConnection[Any]) -> None:
    """Have what waits read in its order: until the table's statistics are renewed, all of it would be sorted."""
    await connection.execute("SET enable_sort = off")


def _worker(row: Row) -> Worker:
    workflows = None if row["workflows"] is None else tuple(row["workflows"])
    return Worker(row["name"], row["host"], tuple(row["queues"]), row["vram"], workflows, row["release"], row["run"])


async def _slept(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), max(0.0, seconds))
    event.clear()


def hashed(token: str) -> str:
    """What is kept of a token: it has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()
