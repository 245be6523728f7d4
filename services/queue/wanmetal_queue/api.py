"""RunPod's serverless protocol, for clients (run, status) and for the workers of its SDK (job-take, job-done)."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import webhook
from .store import (
    CANCEL,
    CHUNK,
    COUNTS,
    DONE,
    HEALTH,
    OPEN,
    PROGRESS,
    PURGE,
    READ_CHUNKS,
    RETRY,
    AwayError,
    GoneError,
    Row,
    Store,
    TextError,
    hashed,
)
from .waiters import Need, Worker

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VRAM = re.compile(r"vram([1-9][0-9]{0,3})")
_WAIT_MS, _MOST_WAIT_MS, _WEEK_MS = 90_000, 300_000, 604_800_000
# A worker asks again at once, so what has no job for it is never quick. The stop channel is its sign of life.
_TAKE_S, _STOP_S, _DONE_S, _PAUSE_S = 25.0, 5.0, 50.0, 5.0
_ALIVE_S = 30.0
_NAME, _WORKERS = 200, 1000  # characters of a name, and workers of one host that are known


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


class Api:
    """Answers everybody."""

    def __init__(self, store: Store) -> None:
        self.store, self.closing = store, False
        north: dict[str, Callable[[Request, Row], Awaitable[Any]]] = {
            "run": self.run,
            "runsync": self.runsync,
            "status/{id}": self.status,
            "stream/{id}": self.stream,
            "cancel/{id}": self.cancel,
            "retry/{id}": self.retry,
            "health": self.health,
            "purge-queue": self.purge,
        }
        south: dict[str, Callable[[Request, Worker], Awaitable[Any]]] = {
            "job-take/{pod}": self.take,
            "job-take-batch/{pod}": self.take,
            "job-stop/{pod}": self.stop,
            "job-done/{pod}/{id}": self.done,
            "job-stream/{pod}/{id}": self.chunk,
            "ping/{pod}": self.ping,
        }
        routes = [Route("/health", self.alive), Route("/counts", self.counts)]
        routes += [
            Route(f"/v2/{{endpoint}}/{path}", self._north(do), methods=["GET", "POST"]) for path, do in north.items()
        ]
        routes += [
            Route(f"/v2/{{endpoint}}/{path}", self._south(do), methods=["GET", "POST"]) for path, do in south.items()
        ]
        self.app = Starlette(routes=routes, exception_handlers={404: _unknown, 405: _unknown})

    # -- who asks

    def _north(self, do: Callable[[Request, Row], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                token = self._token(request, "client")
                if not token:
                    raise RefusedError(401, "the token is not one of this queue's clients")  # noqa: TRY301
                if not {"*", request.path_params["endpoint"]} & set(token["queues"]):
                    raise RefusedError(403, f"the token is for the endpoints {', '.join(token['queues'])}")  # noqa: TRY301
                return _json(await do(request, token))
            except RefusedError as error:
                return _json({"error": str(error)}, error.status, error.headers)
            except TextError as error:
                return _json({"error": str(error)}, 400)
            except AwayError:
                return _json({"error": "the database of the queue cannot be used now"}, 503, {"Retry-After": "2"})

        return answer

    def _south(self, do: Callable[[Request, Worker], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            token, names = self._token(request, "host"), request.path_params["endpoint"].split(",")
            if not token or not {*names} <= {*token["queues"]}:
                await asyncio.sleep(_PAUSE_S)  # a worker asks again at once
                why = f"the token is for the queues {', '.join(token['queues'])}" if token else "the token is not known"
                return _json({"error": why}, 403 if token else 401)
            query = request.query_params
            workflows = query.get("workflows")
            vram = query.get("vram", "0")
            worker = Worker(
                f"{token['name']}/{request.path_params['pod']}",
                token["name"],
                tuple(names),
                int(vram) if vram.isdecimal() and len(vram) < 5 else 0,
                None if workflows is None else tuple(filter(None, workflows.split(","))),
                query.get("release", ""),
                query.get("run", ""),
            )
            try:
                if len(worker.name) > _NAME:
                    raise RefusedError(400, f"the names of a host and its worker may have {_NAME} characters")  # noqa: TRY301
                return _json(await do(request, worker))
            except RefusedError as error:
                return _json({"error": str(error)}, error.status)
            except TextError as error:
                return _json({"error": str(error)}, 400)
            except AwayError:
                # After 429 a worker waits for 5 s; after 503 it sends its result twice more.
                return _json({"error": "the database of the queue cannot be used now"}, 429 if do == self.take else 503)

        return answer

    def _token(self, request: Request, kind: str) -> Row | None:
        given = request.headers.get("authorization", "")
        token = self.store.tokens.get(hashed(re.sub("(?i)^bearer ", "", given).strip()))
        return token if token and token["kind"] == kind else None

    async def alive(self, _request: Request) -> Response:
        """Say whether the queue can do its work."""
        try:
            await self.store.sql("SELECT 1", 1)
        except AwayError:
            return _json({"error": "the database of the queue cannot be used now"}, 503)
        return _json({"leads": self.store.leader})

    async def counts(self, _request: Request) -> Response:
        """Count all jobs and the hosts that fetch them, for programs on this host: the proxy lets nobody else ask."""
        try:
            rows = await self.store.sql(COUNTS, 1, s=_ALIVE_S)
        except AwayError:
            return _json({"error": "the database of the queue cannot be used now"}, 503)
        [row] = rows
        return _json({"jobs": _named(row["jobs"] or {}), "oldestWaiting": row["oldest"], "hosts": row["hosts"]})

    # -- clients

    async def run(self, request: Request, token: Row) -> Any:
        """Accept a job."""
        id_, status = await self._accepted(request, token)
        return {"id": id_, "status": status}

    async def runsync(self, request: Request, token: Row) -> Any:
        """Accept a job, and wait for its end."""
        text = request.query_params.get("wait", str(_WAIT_MS))
        if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= _MOST_WAIT_MS):
            raise RefusedError(400, f"wait has to be milliseconds, at most {_MOST_WAIT_MS}")
        id_, _status = await self._accepted(request, token)
        return await self._told(request.path_params["endpoint"], id_, int(text) / 1000)

    async def _accepted(self, request: Request, token: Row) -> tuple[str, str]:
        endpoint, store = request.path_params["endpoint"], self.store
        given = _read(await _body(request, store.settings.body_mb))
        if not isinstance(given, dict) or "input" not in given:
            raise RefusedError(400, 'the request has to be JSON of the form {"input": {...}}')
        id_ = str(uuid.uuid4()) if given.get("id") in (None, "") else given["id"]
        if not (isinstance(id_, str) and _ID.fullmatch(id_)):
            raise RefusedError(
                400, "id has to be of 1 to 64 letters, digits, . _ and -, beginning with a letter or digit"
            )
        if found := await store.job(endpoint, id_):
            return id_, found["status"]
        policy = given.get("policy") or {}
        if not isinstance(policy, dict):
            raise RefusedError(400, "policy has to be a mapping")
        if (url := given.get("webhook")) and (wrong := webhook.problem(url)):
            raise RefusedError(400, wrong)
        priority = -1 if policy.get("lowPriority") is True else policy.get("priority", 0)
        if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > 1000:
            raise RefusedError(400, "policy.priority has to be a whole number from -1000 to 1000; higher ones go first")
        need = self._need(endpoint, given)
        timeout = _milliseconds(policy, "executionTimeout", store.settings.job_timeout)
        ttl = _milliseconds(policy, "ttl", store.settings.ttl)
        if await store.full(need.queue):
            why = f"{store.settings.waiting} jobs wait already, which is the most that may"
            raise RefusedError(429, why, Retry_After="10")
        secret = json.dumps(given["s3Config"]) if given.get("s3Config") else None
        values = {"id": id_, "endpoint": endpoint, "client": token["name"], "priority": priority, "secret": secret}
        values |= {"input": json.dumps(given["input"]), "webhook": url or None, "ttl": ttl, "timeout": timeout}
        if await store.accept({**values, **vars(need)}):
            return id_, "IN_QUEUE"
        if found := await store.job(endpoint, id_):
            return id_, found["status"]
        raise RefusedError(409, f"a job of the id {id_} is at another endpoint")

    def _need(self, endpoint: str, given: dict[str, Any]) -> Need:
        """What a job asks of a worker, from its endpoint's name, its field requires, and the workflow that it names."""
        store = self.store
        queues = {queue for token in store.tokens.values() if token["kind"] == "host" for queue in token["queues"]}
        workers = list(store.workers.values())
        need: dict[str, Any] = {"vram": 0, "workflow": "", "release": ""}
        asked = given.get("requires") or {}
        if not isinstance(asked, dict) or not all(type(value) is type(need.get(key)) for key, value in asked.items()):
            raise RefusedError(400, "requires may have vram (a number of GB), workflow and release (texts)")
        need |= {"queue": endpoint, **asked, "vram": min(asked.get("vram", 0), 9999)}
        if endpoint not in queues:
            need["queue"] = "any"
            if match := _VRAM.fullmatch(endpoint):
                need["vram"] = max(need["vram"], int(match[1]))
            elif endpoint in _all(worker.workflows or () for worker in workers):
                need["workflow"] = endpoint
            elif endpoint in {worker.release for worker in workers} - {""}:
                need["release"] = endpoint
            elif endpoint != "any":
                names = ", ".join(sorted({*queues, "any", "vram24"}))
                raise RefusedError(404, f"no host serves the endpoint {endpoint}; there are: {names}")
        of_queue = [worker for worker in workers if need["queue"] in worker.queues]
        named = given["input"].get("workflow") if isinstance(given["input"], dict) else None
        if not need["workflow"] and isinstance(named, str) and any(w.workflows is not None for w in of_queue):
            need["workflow"] = named
        found = Need(**need)
        if max(len(found.workflow), len(found.release)) > _NAME:
            raise RefusedError(400, f"the name of a workflow or release may have {_NAME} characters")
        if of_queue and not any(worker.can(found) for worker in of_queue):
            raise RefusedError(400, f"no host of the queue {found.queue} can do this job: {_lacking(found, of_queue)}")
        return found

    async def _told(self, endpoint: str, id_: str, seconds: float = 0.0) -> Response:
        job = await self.store.ended(endpoint, id_, 0 if self.closing else seconds)
        if not job:
            raise RefusedError(404, "there is no job of this id")
        return _raw(told(job))

    async def status(self, request: Request, _token: Row) -> Any:
        """Tell of a job."""
        return await self._told(request.path_params["endpoint"], request.path_params["id"])

    async def stream(self, request: Request, _token: Row) -> Any:
        """Give what a job has streamed since the last time."""
        endpoint, id_ = request.path_params["endpoint"], request.path_params["id"]
        job = await self.store.job(endpoint, id_)
        if not job:
            raise RefusedError(404, "there is no job of this id")
        chunks = await self.store.sql(READ_CHUNKS, id=id_)
        # RunPod's client never ends at CANCELLED.
        status = "FAILED" if job["status"] == "CANCELLED" else job["status"]
        stream = ",".join(f'{{"output":{chunk["output"]}}}' for chunk in chunks)
        return _raw(f'{{"id":{json.dumps(id_)},"status":"{status}","stream":[{stream}]}}')

    async def cancel(self, request: Request, _token: Row) -> Any:
        """End a job now. Whoever works at it is told."""
        endpoint, id_ = request.path_params["endpoint"], request.path_params["id"]
        await self.store.sql(CANCEL, 2.0, id=id_, endpoint=endpoint)
        return await self._told(endpoint, id_)

    async def retry(self, request: Request, _token: Row) -> Any:
        """Do a job again that has failed."""
        endpoint, id_ = request.path_params["endpoint"], request.path_params["id"]
        if not await self.store.sql(RETRY, id=id_, endpoint=endpoint):
            if job := await self.store.job(endpoint, id_):
                raise RefusedError(400, f"a job is tried again when it is FAILED or TIMED_OUT, this is {job['status']}")
            raise RefusedError(404, "there is no job of this id")
        return {"id": id_, "status": "IN_QUEUE"}

    async def health(self, request: Request, _token: Row) -> Any:
        """Count jobs and workers."""
        rows = await self.store.sql(HEALTH, endpoint=request.path_params["endpoint"])
        statement = """SELECT count(*) AS alive,
            count(*) FILTER (WHERE name IN (SELECT worker FROM jobs WHERE status = 'IN_PROGRESS')) AS running
            FROM workers WHERE seen > %(now)s - %(s)s"""
        [workers] = await self.store.sql(statement, s=_ALIVE_S)
        return {
            "jobs": _named({row["status"]: row["number"] for row in rows})
            | {"retried": sum(row["retried"] for row in rows)},
            "workers": {"idle": workers["alive"] - workers["running"], "running": workers["running"]},
        }

    async def purge(self, request: Request, _token: Row) -> Any:
        """Cancel all that waits."""
        removed = await self.store.sql(PURGE, endpoint=request.path_params["endpoint"])
        return {"removed": len(removed), "status": "completed"}

    # -- workers

    async def take(self, request: Request, worker: Worker) -> Any:
        """Give a worker jobs, as soon as there are any."""
        store, until = self.store, asyncio.get_running_loop().time() + _spread(_TAKE_S)
        batch = request.query_params.get("batch_size", "1")
        several = "/job-take-batch/" in request.url.path
        of_host = (
            sum(one.host == worker.host for one in store.workers.values()) if worker.name not in store.workers else 0
        )
        if of_host >= _WORKERS:
            raise RefusedError(429, f"the host has {_WORKERS} workers already, which is the most that it may")
        store.seen[worker.name] = store.now()
        await store.known(worker)
        if request.query_params.get("job_in_progress") == "0":
            await store.forget(worker.name)
        most = max(1, min(int(batch), 100)) if batch.isdecimal() and len(batch) < 5 else 1

        async def there() -> bool:
            """Whether an answer would be read by somebody who may have a job. It may have waited for its turn."""
            token = self._token(request, "host")
            if not token or token["drained_until"] > store.now():
                raise RefusedError(429, "the host is drained")
            return not await request.is_disconnected()

        with store.waiters.worker(worker), suppress(GoneError, TimeoutError):
            while not self.closing:
                if jobs := await store.take(worker, most, there):
                    told_jobs = [_job(job) for job in jobs]
                    return _raw(f"[{','.join(told_jobs)}]" if several else told_jobs[0])
                left = until - asyncio.get_running_loop().time()
                await asyncio.wait_for(worker.event.wait(), max(0.0, left))
        store.seen[worker.name] = store.now()
        return Response(status_code=204)

    async def stop(self, _request: Request, worker: Worker) -> Any:
        """Tell a worker what to stop."""
        self.store.seen[worker.name] = self.store.now()
        jobs = await self.store.to_stop(worker.name, 0 if self.closing else _spread(_STOP_S))
        self.store.seen[worker.name] = self.store.now()
        return {"jobsToStop": jobs} if jobs else Response(status_code=204)

    async def done(self, request: Request, worker: Worker) -> Any:
        """Take a result or progress. What comes too late is thrown away, and is no error."""
        result: Any = {}
        try:
            result = _read(await _body(request, 2 * self.store.settings.body_mb), allow=True)
        except RefusedError as error:
            result = {"error": f"the worker's result was refused: {error}"}
        result = result if isinstance(result, dict) else {"output": result}
        output = json.dumps(result["output"]) if "output" in result else None
        values = {"id": request.path_params["id"], "worker": worker.name, "output": output}
        if result.get("status") == "IN_PROGRESS":
            await self.store.sql(PROGRESS, **values)
            return {}
        failure = result.get("error")
        text = failure if isinstance(failure, str) else json.dumps(failure)
        text = text.replace("\0", "\ufffd").encode(errors="replace").decode()
        values |= {"status": "FAILED" if failure else "COMPLETED", "error": text if failure else None}
        await self.store.sql(DONE, _DONE_S, **values)
        self.store.stops.get(worker.name, {}).pop(values["id"], None)
        return {}

    async def chunk(self, request: Request, worker: Worker) -> Any:
        """Take a part of a result."""
        part = _read(await _body(request, self.store.settings.body_mb), allow=True)
        output = json.dumps(part.get("output") if isinstance(part, dict) else part)
        await self.store.sql(CHUNK, _DONE_S, id=request.path_params["id"], worker=worker.name, output=output)
        return {}

    async def ping(self, request: Request, worker: Worker) -> Any:
        """Compare what a worker does with what it is said to do. A ping is no sign of life: it outlives the worker."""
        query = request.query_params
        if query.get("sync") == "1" and query.get("status") != "unhealthy":  # its handler keeps it from asking
            self.store.seen[worker.name] = self.store.now()
        if (listed := query.get("job_id")) is not None:
            which = "worker = %(worker)s AND taken < %(now)s - 20 AND NOT id = ANY(%(listed)s)"
            await self.store.requeue(which, worker=worker.name, listed=listed.split(","))
        return {}


def _spread(most: float) -> float:
    """How long to hold a request: workers that have come at once, as after a restart, are not to come so for ever."""
    return random.uniform(most / 2, most)  # noqa: S311


def told(job: Row) -> str:
    """A job as RunPod tells it, in JSON."""
    answer: Row = {"id": job["id"], "status": job["status"]}
    if job["taken"]:
        answer["delayTime"] = round((job["taken"] - job["created"]) * 1000)
        if job["finished"]:
            answer["executionTime"] = round((job["finished"] - job["taken"]) * 1000)
    if job["error"] is not None:
        answer["error"] = job["error"]
    output = job["progress"] if job["status"] in OPEN else job["output"]
    return _with(answer, output=output)


def _job(job: Row) -> str:
    return _with({"id": job["id"], "attempt": job["attempt"]}, input=job["input"], s3Config=job["secret"])


def _with(plain: Row, **texts: str | None) -> str:
    """JSON of values, and of texts that are JSON already."""
    parts = [f"{json.dumps(name)}:{text}" for name, text in texts.items() if text is not None]
    return f"{json.dumps(plain)[:-1]}{''.join(f',{part}' for part in parts)}}}"


def _raw(text: str) -> Response:
    return Response(text, media_type="application/json")


def _named(number: Mapping[str, int]) -> dict[str, int]:
    names = {"completed": "COMPLETED", "failed": "FAILED", "inProgress": "IN_PROGRESS", "inQueue": "IN_QUEUE"}
    return {name: number.get(status, 0) for name, status in names.items()}


def _json(answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    if isinstance(answer, Response):
        return answer
    return Response(json.dumps(answer), status, headers, media_type="application/json")


async def _unknown(_request: Request, _error: Exception) -> Response:
    return _json({"error": "there are POST /v2/ENDPOINT/run and runsync, GET .../status/ID, and the like"}, 404)


async def _body(request: Request, most_mb: float) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most_mb * 1e6:
            raise RefusedError(413, f"the body is larger than {most_mb:g} MB", Connection="close")
    return bytes(data)


def _read(data: bytes, allow: bool = False) -> Any:
    """Read JSON. Numbers that JSON does not have are refused, or become null in what a worker has made."""

    def number(name: str) -> None:
        if not allow:
            raise ValueError(name)

    def real(text: str) -> float | None:
        if math.isfinite(value := float(text)):  # 1e999 is infinite
            return value
        number(text)
        return None

    try:
        return json.loads(data, parse_constant=number, parse_float=real)
    except (ValueError, RecursionError) as error:
        form = "" if allow else ' of the form {"input": {...}}'
        raise RefusedError(400, f"the body has to be JSON{form}, and nested less deeply than 900 times") from error


def _milliseconds(policy: dict[str, Any], name: str, default: float) -> float:
    given = policy.get(name)
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int | float) or not 1000 <= given <= _WEEK_MS:
        raise RefusedError(400, f"policy.{name} has to be milliseconds, from 1000 to {_WEEK_MS}")
    return float(given) / 1000


def _all(lists: Iterable[Iterable[str]]) -> set[str]:
    return {entry for entries in lists for entry in entries}


def _lacking(need: Need, workers: list[Worker]) -> str:
    """Why none of these workers can do a job."""
    if need.vram > (most := max(worker.vram for worker in workers)):
        return f"it needs {need.vram} GB of GPU memory, and the largest GPU has {most} GB"
    workflows = _all(worker.workflows or () for worker in workers)
    if need.workflow and need.workflow not in workflows and all(worker.workflows is not None for worker in workers):
        return f"it needs the workflow {need.workflow[:100]}; there are: {', '.join(sorted(workflows)) or 'none'}"
    releases = {worker.release for worker in workers}
    if need.release not in {"", *releases}:
        return f"it needs the release {need.release[:100]}; there are: {', '.join(sorted(releases - {''})) or 'none'}"
    return "no single host has all of the GPU memory, the workflow and the release that it needs"
