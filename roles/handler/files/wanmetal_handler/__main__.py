"""Runs as a local API, or where RunPod's environment is found, as a worker of its SDK."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from . import api, receipt, serverless, workflows
from .comfyui_client import ComfyUIClient
from .output import Bucket
from .service import Service
from .store import Store
from .work import Limits, Worker

_RUNPOD = ("RUNPOD_ENDPOINT_ID", "RUNPOD_AI_API_KEY")


def worker_from(environment: Mapping[str, str]) -> Worker:
    """Put the worker together from the environment of its service."""

    def number(name: str, default: float) -> float:
        return float(environment.get(f"HANDLER_{name}") or default)

    def home(name: str) -> Path:
        return Path(environment.get(f"HANDLER_{name}") or "/nonexistent")

    endpoint = environment.get("BUCKET_ENDPOINT_URL", "")
    bucket = Bucket(
        endpoint,
        environment.get("BUCKET_ACCESS_KEY_ID", ""),
        environment.get("BUCKET_SECRET_ACCESS_KEY", ""),
        environment.get("BUCKET_NAME", ""),
        environment.get("BUCKET_REGION") or "us-east-1",
        int(number("LINK_HOURS", 168)),
    )
    limits = Limits(
        job_s=number("JOB_TIMEOUT", 1800),
        image_s=number("IMAGE_TIMEOUT", 30),
        image_bytes=int(number("IMAGE_MB", 20) * 1e6),
        image_pixels=int(number("IMAGE_MEGAPIXELS", 40) * 1e6),
        inline_bytes=int(number("INLINE_MB", 10) * 1e6),
        allowed=[ipaddress.ip_network(text) for text in environment.get("HANDLER_IMAGE_ALLOW", "").split()],
    )
    return Worker(
        ComfyUIClient(environment.get("COMFYUI_URL") or "http://127.0.0.1:8188", timeout_s=60),
        workflows.load(home("WORKFLOWS")),
        receipt.Sources(home("RELEASE"), home("MODELS")),
        limits,
        bucket if endpoint else None,
        [Path(text) for text in environment.get("HANDLER_FOLDERS", "").split(":") if text],
    )


def main() -> int:
    """Serve until a signal says otherwise."""
    parser = argparse.ArgumentParser(prog="wanmetal_handler", description=__doc__)
    parser.add_argument("--rp_serve_api", action="store_true", help="the local API, whatever the environment says")
    parser.add_argument("--rp_api_port", type=int, default=8388, help="its port")
    arguments, _ = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    environment = os.environ
    threads = int(environment.get("HANDLER_CONCURRENCY") or 1)
    local = arguments.rp_serve_api or not any(environment.get(name) for name in _RUNPOD)
    try:
        worker = worker_from(environment)
    except (OSError, ValueError, KeyError, workflows.WorkflowError) as error:
        sys.exit(f"the handler cannot start: {error}")
    service = Service(
        Store(Path(environment.get("HANDLER_RECORD") or "jobs.db")),
        worker,
        threads=threads,
        most_waiting=int(environment.get("HANDLER_QUEUE") or 200),
        keep_s=float(environment.get("HANDLER_KEEP_HOURS") or 24) * 3600,
        **({} if local else {"told": serverless.teller()}),
    )
    if not local:
        serverless.start(service, threads)
        service.close()
        return 0
    server = api.Server(("127.0.0.1", arguments.rp_api_port), service, worker.limits.image_bytes * 4 // 3 + 1_000_000)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"listening on http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever(0.1)
    service.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
