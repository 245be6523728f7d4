"""A worker on RunPod's SDK whose jobs say what is to happen; run with the SDK's environment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import runpod.serverless


async def handle(job: dict[str, Any]) -> Any:
    given = job["input"]
    with Path(os.environ["WORKER_LOG"]).open("a") as log:
        log.write(f"{os.environ['RUNPOD_POD_ID']} {job['id']} {job['attempt']}\n")
    try:
        await asyncio.sleep(given.get("seconds", 0))
    except asyncio.CancelledError:
        with Path(os.environ["WORKER_LOG"]).open("a") as log:
            log.write(f"{os.environ['RUNPOD_POD_ID']} {job['id']} stopped\n")
        raise
    if given.get("fail_before", 0) >= job["attempt"]:
        return {"error": f"attempt {job['attempt']} fails"}
    return {"echo": given, "pod": os.environ["RUNPOD_POD_ID"], "secret": job.get("s3Config")}


async def stream(job: dict[str, Any]) -> AsyncIterator[Any]:
    for number in range(job["input"]["stream"]):
        yield {"part": number}


if __name__ == "__main__":
    handler = stream if os.environ.get("WORKER_STREAMS") else handle
    several = int(os.environ.get("WORKER_CONCURRENCY", "1"))
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _now: several})
