"""Serves the Comfy API v2 in front of each ComfyUI: comfy-api-proxy, whose program takes its token as an argument."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from aiohttp import web
from comfy_api_proxy import app
from comfy_api_proxy.auth import make_bearer_auth_middleware
from comfy_api_proxy.middleware import make_origin_only_middleware


class Proxy(app.Proxy):
    """Does not call a job expired that ends between its questions for the history and for the queue, as 0.1.6 does."""

    async def _status_of(self, job_id: str, base: str) -> dict[str, Any]:
        state: dict[str, Any] = await super()._status_of(job_id, base)
        return state if state["status"] != "unknown" else await super()._status_of(job_id, base)


async def main() -> None:
    """Serve until a signal says otherwise."""
    first, most = int(os.environ["COMFYUI_API_V2_PORT"]), int(os.environ["COMFYUI_API_V2_UPLOAD_MB"]) * 2**20
    token = os.environ["COMFYUI_API_V2_TOKEN"]
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runners = []
    for number, url in enumerate(os.environ["COMFYUI_URL"].split()):
        state = Path(os.environ["STATE_DIRECTORY"]) / str(number)
        state.mkdir(exist_ok=True)
        guards = [make_origin_only_middleware([]), make_bearer_auth_middleware(token)]
        served = app.make_app(url, max_upload_bytes=most, state_dir=state, middlewares=guards)
        runner = web.AppRunner(served, access_log=None, shutdown_timeout=5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", first + number).start()
        runners.append(runner)
    await stopped.wait()
    await asyncio.gather(*(runner.cleanup() for runner in runners))


if __name__ == "__main__":
    app.Proxy = Proxy
    asyncio.run(main())
