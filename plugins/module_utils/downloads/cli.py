"""The program that a service runs: the same engine, without Ansible."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import order, progress
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.engine import Engine
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.lock import BusyError, exclusive
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.progress import duration, human
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.recheck import recheck
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.state import Record

USAGE = "usage: wanmetal-models run JOB.json | verify STATE_DIR | status STATE_DIR"
INTERRUPTED = 75
"""What was ordered is not done, and nothing is wrong."""
_EVERY_S = 30.0


def main(arguments: list[str]) -> int:
    """Run one command; return the exit status."""
    if len(arguments) != 2 or arguments[0] not in {"run", "verify", "status"}:
        print(USAGE, file=sys.stderr)
        return 2
    command, path = arguments[0], Path(arguments[1])
    if command == "run":
        return run(path)
    return verify(path) if command == "verify" else status(path)


class Teller:
    """Tells systemd each second, and the journal now and then."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, told: dict[str, Any]) -> None:
        """Pass the progress on."""
        line = progress.line(told)
        notify(f"STATUS={line}")
        if time.monotonic() >= self._next or told["phase"] == "done":
            self._next = time.monotonic() + _EVERY_S
            print(line, flush=True)


def run(path: Path) -> int:
    """Fetch what a job file orders."""
    job = order.parse(json.loads(path.read_text(encoding="utf-8")))
    state_dir = job.settings.state_dir
    state_dir.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(state_dir, job.wait_s) as lock:
            engine = Engine(job.wanted, job.settings, lock, Teller())
            signal.signal(signal.SIGTERM, lambda *_: engine.stop())
            if job.read_again:
                engine.read_again()
            outcome = engine.run()
    except BusyError as busy:
        print(f"another download runs on this host ({busy})", file=sys.stderr)
        return 1
    for failure in outcome.failed:
        print(f"{failure['file']}: {failure['problem']}", file=sys.stderr)
    if outcome.interrupted:
        return INTERRUPTED
    if not outcome.failed:
        # It holds the tokens, and is not needed any longer.
        path.unlink(missing_ok=True)
        print(f"all {len(outcome.files)} files are there; {human(outcome.fetched_bytes)} were fetched", flush=True)
    return 1 if outcome.failed else 0


def verify(state_dir: Path) -> int:
    """Read everything again that was proven once. What is wrong is named, and proven or fetched anew next time."""
    begun = time.monotonic()
    with exclusive(state_dir):
        record = Record(state_dir)
        wrong = recheck(record, None, lambda done, total: notify(f"STATUS={human(done)} of {human(total)} read"))
        for item in wrong:
            record.forget(Path(item["path"]))
            print(f"{item['path']}: sha256 is {item['found']}, it was {item['expected']}", file=sys.stderr)
    print(f"{len(record.proofs)} files are as they were; read in {duration(time.monotonic() - begun)}", flush=True)
    return 1 if wrong else 0


def status(state_dir: Path) -> int:
    """Show how far the download is."""
    told = progress.told(state_dir)
    print(progress.line(told) if told else "no download has run here")
    return 0


def notify(text: str) -> None:
    """Tell systemd something, where it listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.send(text.encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
