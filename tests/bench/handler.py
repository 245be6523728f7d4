#!/usr/bin/env python3
"""What the handler adds to a graph that is posted to ComfyUI directly, and how fast it answers while jobs wait.

    ssh HOST sudo python3 - < tests/bench/handler.py      # on a host that has both

The handler's first workflow has to be that of molecule/services: an image in, a video of five frames out.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from typing import Any

COMFYUI, HANDLER = 8188, 8388
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
RUNS, HOLD_S = 60, 60.0
WAITING, CLIENTS, PAUSE_S = 200, 50, 0.1


def call(port: int, method: str, path: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse().read()
    connection.close()
    return json.loads(answer) if answer[:1] in {b"{", b"["} else answer


def direct(graph: dict[str, Any], number: int) -> float:
    """Post the graph, wait for its end, and get the video."""
    for node in graph.values():
        if "filename_prefix" in node["inputs"]:
            node["inputs"]["filename_prefix"] = f"bench-{number}"
        if node["class_type"] == "ImageScale":  # so that nothing comes from the cache
            node["inputs"]["width"] = 64 + 16 * (number % 2)
    started = time.perf_counter()
    id_ = call(COMFYUI, "POST", "/prompt", {"prompt": graph})["prompt_id"]
    while not (entry := call(COMFYUI, "GET", f"/history/{id_}").get(id_)):
        time.sleep(0.002)
    (file,) = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    call(COMFYUI, "GET", f"/view?filename={file['filename']}&subfolder={file['subfolder']}&type=output")
    return time.perf_counter() - started


def handled(number: int) -> tuple[float, dict[str, float]]:
    started = time.perf_counter()
    job = call(HANDLER, "POST", "/runsync", {"input": {"image": PIXEL, "width": 64 + 16 * (number % 2)}})
    seconds = time.perf_counter() - started
    if job["status"] != "COMPLETED":
        sys.exit(f"a job failed: {job}")
    return seconds, job["output"]["receipt"]["seconds"]


async def poll(id_: str, number: int) -> list[float]:
    """Ask for a job ten times a second until its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", HANDLER)
    took, answer = [], b""
    await asyncio.sleep(PAUSE_S * number / CLIENTS)
    while b"COMPLETED" not in answer:
        started = time.perf_counter()
        writer.write(f"GET /status/{id_} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        answer = await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
        took.append(time.perf_counter() - started)
        await asyncio.sleep(PAUSE_S)
    writer.close()
    return took


async def polled() -> list[float]:
    """How long each answer takes while jobs wait, and clients ask for the last of them."""
    bodies = [{"input": {"image": PIXEL, "width": 64 + 16 * (number % 2)}} for number in range(WAITING)]
    ids = [call(HANDLER, "POST", "/run", body)["id"] for body in bodies]
    found = await asyncio.gather(*[poll(id_, number) for number, id_ in enumerate(ids[-CLIENTS:])])
    return [one for took in found for one in took]


def ms(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    at = {f"p{part}": ordered[len(ordered) * part // 100] * 1000 for part in (10, 50, 99)}
    return ", ".join(f"{name} {value:.1f} ms" for name, value in at.items())


def main() -> None:
    unit = subprocess.run(["systemctl", "cat", "comfyui-handler"], capture_output=True, text=True, check=True).stdout
    workflows = re.findall(r"HANDLER_WORKFLOWS=(\S+)", unit)[0]
    with open(workflows, encoding="utf-8") as stream:  # noqa: PTH123 (as short as it gets)
        graph = json.load(stream)[0]["graph"]
    memory = "systemctl show comfyui-handler --property=MemoryCurrent --value"
    at_rest = int(subprocess.run(memory.split(), capture_output=True, text=True, check=True).stdout)
    uploaded = call(HANDLER, "POST", "/runsync", {"input": {"image": PIXEL}})
    if uploaded["status"] != "COMPLETED":
        sys.exit(f"a job failed: {uploaded}")
    for node in graph.values():
        if node["class_type"] == "LoadImage":  # a picture that is there
            node["class_type"], node["inputs"] = "EmptyImage", {"width": 1, "height": 1, "batch_size": 1, "color": 9}
    pairs = [(direct(graph, number), *handled(number)) for number in range(RUNS)]
    alone, whole = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    added = [total - stages["render"] for _, total, stages in pairs]
    print(f"load        {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"direct      {ms(alone)}")
    print(f"handler     {ms(whole)}")
    print(f"difference  p50 {(statistics.median(whole) - statistics.median(alone)) * 1000:.1f} ms")
    print(f"outside of the rendering stage  {ms(added)}")
    medians = {stage: statistics.median(stages[stage] for _, _, stages in pairs) * 1000 for stage in pairs[0][2]}
    print("stages      " + ", ".join(f"{stage} {value:.0f} ms" for stage, value in medians.items()))
    print(f"{WAITING} jobs wait and {CLIENTS} clients poll: {ms(asyncio.run(polled()))}")
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < HOLD_S:
        handled(done)
        done += 1
    print(f"held {HOLD_S:.0f} s: {done / HOLD_S:.1f} jobs a second, no error")
    print(f"memory at rest  {at_rest / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
