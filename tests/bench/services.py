#!/usr/bin/env python3
"""What the API adds to a graph that is posted to ComfyUI directly; run on a host that has both.

    ssh HOST sudo python3 - < tests/bench/services.py

The handler has a measurement of its own, handler.py.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

COMFYUI, API = 8188, 8288
RUNS, HOLD_S = 200, 60.0


def call(port: int, method: str, path: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    if answer.status != 200:
        sys.exit(f"{path} was answered with {answer.status}: {data[:300]!r}")
    return json.loads(data) if data[:1] in {b"{", b"["} else data


def graph(number: int) -> dict[str, Any]:
    """A picture of 64 by 64; a new colour each time, so that nothing comes from the cache."""
    image = {"width": 64, "height": 64, "batch_size": 1, "color": (time.time_ns() // 1000 + number) % 2**24}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": f"bench-{number}"}},
    }


def direct(number: int) -> None:
    """Post the graph, wait for its end, and get the picture."""
    id_ = call(COMFYUI, "POST", "/prompt", {"prompt": graph(number)})["prompt_id"]
    while not (entry := call(COMFYUI, "GET", f"/history/{id_}").get(id_)):
        time.sleep(0.002)
    call(COMFYUI, "GET", f"/view?filename={entry['outputs']['2']['images'][0]['filename']}&type=output")


def through_the_api(number: int) -> None:
    if len(call(API, "POST", "/prompt", {"prompt": graph(number)})["images"]) != 1:
        sys.exit("a picture did not come back")


def seconds(work: Callable[[int], None], number: int) -> float:
    started = time.perf_counter()
    work(number)
    return time.perf_counter() - started


def ms(values: list[float]) -> str:
    ordered = sorted(values)
    return f"p50 {statistics.median(ordered) * 1000:.1f} ms, p99 {ordered[int(len(ordered) * 0.99)] * 1000:.1f} ms"


def main() -> None:
    memory = ["systemctl", "show", "--property=MemoryCurrent", "--value"]
    units = ("comfyui-api", "jupyterlab")
    at_rest = {unit: subprocess.run([*memory, unit], capture_output=True, text=True).stdout.strip() for unit in units}
    direct(0)
    through_the_api(0)
    pairs = [(seconds(direct, number), seconds(through_the_api, number)) for number in range(RUNS)]
    alone, whole = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    print(f"direct      {ms(alone)}")
    print(f"API         {ms(whole)}")
    print(f"difference  p50 {(statistics.median(whole) - statistics.median(alone)) * 1000:.1f} ms")
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < HOLD_S:
        through_the_api(done)
        done += 1
    print(f"held {HOLD_S:.0f} s: {done / HOLD_S:.1f} requests a second, no error")
    for unit, used in at_rest.items():
        print(f"memory at rest  {unit} {int(used) / 1e6:.0f} MB" if used.isdigit() else f"{unit} is not there")


if __name__ == "__main__":
    main()
