"""The local API: /run, /runsync, /status, /cancel and /health, as RunPod's, and /workflows, for this machine."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Query, Request, responses
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .failure import JobError
from .inputs import whole
from .jobs import Job, Jobs, told
from .workflows import BROUGHT

_log = logging.getLogger("handler")
_MOST_WAIT_MS, _WEEK_MS = 300_000, 604_800_000
_DRAIN_S, _BODY_S, _HEALTH_S = 5, 60, 1.0
_LARGE = 1_000_000
_RETRY_S = "10"
_THERE_ARE = (
    "there are: POST /run, POST /runsync, GET /status/ID, POST /cancel/ID, GET /health, GET /workflows, GET /docs"
)
_SWAGGER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0/swagger-ui"
# The browser runs what has these hashes, and nothing else; without the internet the text in it stays.
_PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>wanmetal handler</title>
<link rel="stylesheet" href="{_SWAGGER}.css" crossorigin="anonymous"
 integrity="sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I"></head>
<body><div id="docs"><p>This page is drawn by Swagger UI, which your browser fetches from cdn.jsdelivr.net.
Where it cannot, read <a href="/openapi.json">/openapi.json</a> or <a href="/workflows">/workflows</a>.</p></div>
<script src="{_SWAGGER}-bundle.js" crossorigin="anonymous"
 integrity="sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"></script>
<script>SwaggerUIBundle({{url: "/openapi.json", dom_id: "#docs"}})</script></body></html>"""
_MUST = {
    "id": "id has to be of 1 to 64 letters, digits, . _ and -, and begin with a letter or a digit",
    "attempt": "attempt has to be a whole number, 0 or more",
    "webhook": "webhook has to be an http(s) address without a user name",
    "wait": f"wait has to be milliseconds, at most {_MOST_WAIT_MS}",
}
Address = Annotated[str, StringConstraints(pattern=r"^https?://[^\x00-\x20\x7f-\xa0@]+$", max_length=2000)]


class JSONResponse(responses.JSONResponse):
    """Names, and what ComfyUI says of an error, may hold half of a surrogate pair, which only ASCII can write."""

    def render(self, content: Any) -> bytes:
        """Write it."""
        return json.dumps(content, separators=(",", ":")).encode()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Policy(_Strict):
    """How long a job may take, in milliseconds."""

    executionTimeout: Annotated[int, Field(gt=5000, le=_WEEK_MS), BeforeValidator(whole)] | None = None  # noqa: N815 (RunPod's name, as below)
    ttl: Annotated[int, Field(ge=10_000, le=_WEEK_MS), BeforeValidator(whole)] | None = None
    lowPriority: bool = False  # noqa: N815


class Bucket(_Strict):
    """Where the results of this job go."""

    accessId: str = Field(max_length=200)  # noqa: N815
    accessSecret: str = Field(max_length=200)  # noqa: N815
    bucketName: str = Field(max_length=200)  # noqa: N815
    endpointUrl: Address  # noqa: N815
    region: str | None = Field(None, max_length=50)


class JobRequest(_Strict):
    """A job."""

    input: Any = Field(description="What the workflow is given; /workflows tells what it may be")
    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    attempt: Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(whole)] = 0
    webhook: Address | None = None
    policy: Policy | None = None
    s3Config: Bucket | None = None  # noqa: N815


class JobAnswer(BaseModel):
    """A job as it stands."""

    model_config = ConfigDict(extra="allow")
    id: str
    status: str
    output: Any = None
    error: str | None = None
    failure: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None
    delayTime: int | None = None  # noqa: N815
    executionTime: int | None = None  # noqa: N815


class Refusal(BaseModel):
    """Why a request is refused."""

    model_config = ConfigDict(extra="allow")
    error: str


class Health(BaseModel):
    """How the handler and each ComfyUI are."""

    draining: bool
    jobs: dict[str, int]
    workers: dict[str, int]
    comfyui: list[dict[str, Any]]
    workflows: dict[str, list[str]]


class Described(BaseModel):
    """What a workflow takes."""

    inputs: dict[str, Any] = Field(description="A JSON schema")
    example: dict[str, Any]


class Server(uvicorn.Server):
    """Serves the jobs."""

    def __init__(self, jobs: Jobs, most_body: int) -> None:
        self._jobs, self.large = jobs, asyncio.Semaphore(2)  # more large ones at a time could fill the memory
        config = uvicorn.Config(
            _Local(application(jobs, most_body, self.large)),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=5,
            lifespan="off",
            proxy_headers=False,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Answer those who wait, and end."""
        threading.Thread(target=self._jobs.release).start()  # not here: this thread may hold the lock
        super().handle_exit(sig, frame)


class _Local:
    """Refuses what a web page makes a browser send here."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            named = headers.get("host", "")
            try:
                host = urlsplit(f"//{named}").hostname
            except ValueError:
                host = None
            # The page at /docs asks, too.
            own = headers.get("origin", f"http://{named}") == f"http://{named}"
            site = headers.get("sec-fetch-site", "none") in {"none", "same-origin"}
            if host not in {"127.0.0.1", "localhost", "::1"} or not own or not site:
                error = _refused("only programs on this machine are answered, by the name 127.0.0.1 or localhost", 403)
                await _drain(receive)
                await _answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _drain(receive: Receive) -> None:
    """Take what is on its way: a caller whose connection is closed before loses the answer."""

    async def rest() -> None:
        while (await receive()).get("more_body"):
            pass

    try:
        await asyncio.wait_for(rest(), _DRAIN_S)
    except (TimeoutError, asyncio.TimeoutError):
        return


def _refused(why: str, status: int = 400) -> JobError:
    return JobError("request", why, status=status)


def _answer(error: JobError) -> JSONResponse:
    status = error.details.get("status", 400)
    headers = {"Retry-After": _RETRY_S} if status in {429, 503} else None
    return JSONResponse({**error.output(), "status": "REFUSED"}, status, headers)


def application(jobs: Jobs, most_body: int, large: asyncio.Semaphore) -> FastAPI:
    """The API, described at /docs."""
    refusals: dict[int | str, Any] = {status: {"model": Refusal} for status in ("4XX", 503)}
    app = FastAPI(title="wanmetal handler", version="1", docs_url=None, redoc_url=None, responses=refusals)
    asked = asyncio.Lock()
    health: dict[str, Any] = {"at": 0.0}
    body = {"required": True, "content": {"application/json": {"schema": _schema(jobs)}}}
    told_job: dict[str, Any] = {"response_model": JobAnswer}

    @app.exception_handler(JobError)
    async def refused(_request: Request, error: JobError) -> JSONResponse:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def wrong(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(_explained(error.errors()))

    @app.exception_handler(sqlite3.Error)
    async def full(_request: Request, error: sqlite3.Error) -> JSONResponse:
        _log.error("the record cannot be used: %s", error)
        return JSONResponse({"error": "the record of the jobs cannot be written; is the disk full?"}, 503)

    @app.exception_handler(Exception)
    async def unforeseen(_request: Request, error: Exception) -> JSONResponse:
        return _answer(JobError("internal", f"an error inside the handler: {type(error).__name__}", status=500))

    @app.exception_handler(HTTPException)
    async def strange(request: Request, error: HTTPException) -> JSONResponse:
        await _drain(request.receive)
        return JSONResponse({"error": _THERE_ARE}, error.status_code, error.headers)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_PAGE)

    async def accepted(request: Request, prefix: str) -> Job:
        """Read a request and take it on. Nothing of it is held while somebody waits for its end."""
        if not {"content-length", "transfer-encoding"} & set(request.headers):
            raise _refused("the request needs a body, with its Content-Length", 411)
        length = int(request.headers.get("content-length", most_body))
        if length > most_body:
            await _drain(request.receive)
            raise _refused(f"the request has {length} bytes; at most {most_body} are taken", 413)
        async with large if length > _LARGE else nullcontext():
            return await asyncio.to_thread(_accepted, jobs, await _body(request, most_body), prefix)

    @app.post("/run", openapi_extra={"requestBody": body}, **told_job)
    async def run(request: Request) -> Any:
        """Accept a job."""
        job = await accepted(request, "")
        return JSONResponse({"id": job["id"], "status": job["status"]})

    @app.post("/runsync", openapi_extra={"requestBody": body}, **told_job)
    async def runsync(request: Request, wait: Annotated[int, Query(ge=0, le=_MOST_WAIT_MS)] = 90_000) -> Any:
        """Accept a job, and wait so many milliseconds for its end."""
        job = await accepted(request, "sync-")
        return _told(await jobs.ended(job["id"], wait / 1000))

    @app.get("/status/{id}", **told_job)
    @app.post("/status/{id}", **told_job)
    async def status(id: str) -> Any:
        """Tell how a job stands."""
        if jobs.is_open(id):  # many ask for those that wait; only what a job has made is worth a thread
            return _told(jobs.get(id))
        return await asyncio.to_thread(lambda: _told(jobs.get(id)))

    @app.post("/cancel/{id}", **told_job)
    async def cancel(id: str) -> Any:
        """Take a job out of the queue, or stop it."""
        await asyncio.to_thread(jobs.stop, id)
        return _told(await jobs.ended(id, 10.0))

    @app.get("/health", response_model=Health, responses={503: {"model": Health | Refusal}})
    @app.post("/health", response_model=Health, responses={503: {"model": Health | Refusal}})
    async def healthy() -> Any:
        """Tell how the handler and each ComfyUI are."""
        async with asked:
            if time.monotonic() - health["at"] > _HEALTH_S:
                health.update(found=await asyncio.to_thread(jobs.health), at=time.monotonic())
            good, found = health["found"]
        return JSONResponse(found, 200 if good else 503)

    @app.get("/workflows", response_model=dict[str, Described])
    def listed() -> Any:
        """Tell the inputs of each workflow, their ranges and defaults, with an example."""
        return JSONResponse(jobs.worker.described())

    return app


async def _body(request: Request, most: int) -> bytearray:
    data = bytearray()

    async def read() -> None:
        async for part in request.stream():
            if len(data) <= most:
                data.extend(part)

    try:
        await asyncio.wait_for(read(), _BODY_S)
    except (TimeoutError, asyncio.TimeoutError, ClientDisconnect) as error:
        raise _refused("the request was cut off") from error
    if len(data) > most:
        raise _refused(f"the request is too large; at most {most} bytes are taken", 413)
    return data


def _told(job: Job | None) -> JSONResponse:
    if job is None:
        raise _refused("there is no job of this id", 404)
    return JSONResponse(told(job))


def _schema(jobs: Jobs) -> dict[str, Any]:
    """What a request may be: a job whose input fits one of the workflows."""
    found: dict[str, Any] = JobRequest.model_json_schema()
    # Links into itself would lead out of the document that it becomes a part of.
    text = json.dumps(found)
    for name, inner in found.pop("$defs").items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(inner))
    schema = json.loads(text)
    schema.pop("$defs", None)
    inputs = []
    for number, (name, workflow) in enumerate(jobs.worker.workflows.items()):
        one = workflow.described()["inputs"]
        one["properties"]["workflow"] = {"const": name}
        if number:
            one["required"] = [*one["required"], "workflow"]
        inputs.append({"title": name, **one})
    if jobs.worker.settings.raw_workflows:
        inputs.append(BROUGHT)
    schema["properties"]["input"] = {"anyOf": inputs}
    return dict(schema)


def _explained(errors: Sequence[Any]) -> JobError:
    """The first of the errors that pydantic found."""
    place = [str(part) for part in errors[0]["loc"] if part != "query"]
    field, why = ascii(".".join(place))[1:-1][:80], re.sub(r"[^ -~]", "?", errors[0]["msg"])
    return _refused(_MUST.get(field) or f"{field}: {why}")


def _accepted(jobs: Jobs, body: bytearray, prefix: str) -> Job:
    def no_number(name: str) -> float:
        raise ValueError(name)

    def number(text: str) -> float:
        return found if math.isfinite(found := float(text)) else no_number(text)  # 1e999 is infinite

    try:
        given = json.loads(body, parse_constant=no_number, parse_float=number)
    except (ValueError, RecursionError) as error:
        raise _refused('the request is no JSON of the form {"input": {…}}') from error
    body.clear()
    if not isinstance(given, dict) or "input" not in given:
        raise _refused('the request has to be of the form {"input": {…}}')
    try:
        asked = JobRequest.model_validate(
            {name: value for name, value in given.items() if name != "input"} | {"input": 0}
        )
    except ValidationError as error:
        raise _explained(error.errors(include_url=False, include_input=False)) from error
    options = asked.model_dump(include={"webhook", "policy", "s3Config"}, exclude_none=True)
    return jobs.accept(asked.id or f"{prefix}{uuid.uuid4()}", given["input"], asked.attempt, options)
