"""RunPod's own SDK, unchanged, as client and as worker of the fleet's queue, and every way in which it loses jobs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.queue.fleet import SDKS, Fleet, environment, fleet, until

SYNC_CLIENT = """
import json, runpod
e = runpod.Endpoint("any")
job = e.run({"input": {"n": 1}, "policy": {"ttl": 60000}})
two = e.run_sync({"n": 2}, timeout=60)
print(json.dumps([job.output(timeout=60), job.status(), two, e.health()["jobs"]["completed"]]))
job = e.run({"seconds": 60})
while job.status() != "IN_PROGRESS": pass
print(json.dumps([job.cancel()["status"], job.status(), list(job.stream()), e.purge_queue()["removed"]]))
"""
ASYNC_CLIENT = """
import asyncio, json, aiohttp, runpod
from runpod import AsyncioEndpoint
async def main():
    async with aiohttp.ClientSession() as session:
        e = AsyncioEndpoint("any", session)
        job = await e.run({"n": 3})
        print(json.dumps([await job.output(timeout=60), await job.status()]))
        job = await e.run({"seconds": 60})
        while await job.status() != "IN_PROGRESS": pass
        print(json.dumps((await job.cancel())["status"]))
asyncio.run(main())
"""


@pytest.fixture
def queue() -> Iterator[Fleet]:
    with fleet() as running:
        yield running


def client(queue: Fleet, sdk: str, program: str) -> list[Any]:
    """What a program prints that uses RunPod's client."""
    address = {"RUNPOD_ENDPOINT_BASE_URL": f"http://127.0.0.1:{queue.port}/v2"}
    done = subprocess.run(
        [environment(SDKS[sdk]), "-c", f"import runpod\nrunpod.api_key = {queue.client!r}\n{program}"],
        env={"PATH": os.environ["PATH"], "HOME": str(queue.folder), **address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("sdk", [pytest.param(sdk, marks=[pytest.mark.slow] * (sdk != "1.12.0")) for sdk in SDKS])
def test_client_and_worker(queue: Fleet, sdk: str) -> None:
    queue.worker("pod", sdk)
    [first, second] = client(queue, sdk, SYNC_CLIENT)
    assert [first[0]["echo"], first[1], first[2]["echo"]["n"], first[3]] == [{"n": 1}, "COMPLETED", 2, 2]
    assert second == ["CANCELLED", "CANCELLED", [], 0]
    until(lambda: "stopped" in queue.log.read_text())
    [output, status], cancelled = client(queue, sdk, ASYNC_CLIENT)
    assert (output["echo"], status, cancelled) == ({"n": 3}, "COMPLETED", "CANCELLED")


@pytest.mark.slow
def test_a_handler_that_streams(queue: Fleet) -> None:
    queue.worker("pod", WORKER_STREAMS="1")
    program = """
import json, runpod
print(json.dumps(list(runpod.Endpoint("any").run({"stream": 5}).stream())))
"""
    assert client(queue, "1.12.0", program) == [[{"part": number} for number in range(5)]]


@pytest.mark.slow
def test_several_jobs_at_a_time(queue: Fleet) -> None:
    queue.worker("pod", WORKER_CONCURRENCY="4")
    for number in range(8):
        queue.run(f"job{number}", {"seconds": 0.5})
    until(lambda: all(queue.status(f"job{number}") == "COMPLETED" for number in range(8)))
    assert all(len(queue.starts(f"job{number}")) == 1 for number in range(8))


@pytest.mark.slow
def test_a_killed_worker_s_job_runs_elsewhere_though_its_pings_go_on(queue: Fleet) -> None:
    queue.worker("dies")
    queue.run("job", {"seconds": 3600})
    until(lambda: queue.starts("job") == ["dies"])
    queue.kill_worker("dies", group=False)
    queue.worker("lives")
    until(lambda: queue.starts("job") == ["dies", "lives"])
    os.killpg(queue.workers["dies"].pid, signal.SIGKILL)  # what pings was there to the end


@pytest.mark.slow
def test_an_idle_worker_that_gets_sigterm_swallows_no_job(queue: Fleet) -> None:
    queue.worker("ends")
    until(lambda: "host1/ends" in queue.command("status"))
    queue.workers["ends"].terminate()
    queue.run("job", {})
    queue.worker("lives")
    until(lambda: queue.status("job") == "COMPLETED")
    assert len(queue.starts("job")) == 1, "by whichever of the two began it"


def test_a_drain_and_then_sigterm(queue: Fleet) -> None:
    queue.worker("ends")
    queue.run("job", {"seconds": 2})
    until(lambda: queue.starts("job"))
    queue.command("drain", "host1", "--wait", "30")
    queue.workers["ends"].terminate()
    assert queue.workers["ends"].wait(30) == 0
    assert (queue.status("job"), queue.starts("job")) == ("COMPLETED", ["ends"])


@pytest.mark.slow
def test_a_result_for_a_queue_that_is_away(queue: Fleet) -> None:
    """Without a proxy that holds it, RunPod's SDK throws it away, and asks with empty hands: it is done again."""
    queue.worker("pod")
    queue.run("job", {"seconds": 2})
    until(lambda: queue.starts("job"))
    queue.stop(signal.SIGKILL)
    time.sleep(4)
    queue.start()
    until(lambda: queue.status("job") == "COMPLETED")
    assert queue.starts("job") == ["pod", "pod"]


@pytest.mark.slow
def test_a_database_that_is_away_for_longer_than_the_limit(queue: Fleet) -> None:
    queue.worker("pod")
    queue.run("job", {"seconds": 4})
    until(lambda: queue.starts("job"))
    queue.database.kill()
    time.sleep(12)
    queue.database.start()
    until(lambda: queue.status("job") == "COMPLETED")
    assert queue.starts("job") == ["pod"]


def test_one_id_three_times_and_retry_on_the_same_host(queue: Fleet) -> None:
    queue.worker("pod")
    for _ in range(3):
        queue.run("job", {"fail_before": 1})
    until(lambda: queue.status("job") == "FAILED")
    assert queue.starts("job") == ["pod"]
    assert queue.call("status/job")["error"] == "attempt 1 fails"
    queue.call("retry/job", {})
    until(lambda: queue.status("job") == "COMPLETED")
    assert queue.starts("job") == ["pod", "pod"]


@pytest.mark.slow
def test_a_worker_that_cannot_reach_the_queue(queue: Fleet) -> None:
    """Its job runs elsewhere; what it finished meanwhile is not a second result."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    relay = subprocess.Popen(["python3", "-c", RELAY, str(port), str(queue.port)])
    try:
        queue.worker("cut", port=port)
        queue.run("job", {"seconds": 5})
        until(lambda: queue.starts("job") == ["cut"])
        relay.send_signal(signal.SIGSTOP)
        queue.worker("lives")
        until(lambda: queue.status("job") == "COMPLETED")
        assert queue.call("status/job")["output"]["pod"] == "lives"
        relay.send_signal(signal.SIGCONT)
        queue.run("after", {})
        until(lambda: queue.status("after") == "COMPLETED")
        assert queue.call("status/job")["output"]["pod"] == "lives"
    finally:
        relay.kill()
        relay.wait()


RELAY = """
import asyncio, sys
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data); await writer.drain()
    except OSError: pass
    finally: writer.close()
async def serve(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as s: await s.serve_forever()
asyncio.run(main())
"""
