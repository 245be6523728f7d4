"""Faults at random points, many runs: in the end each file is right or named, and nothing wrong has its final name.

A sixth of them is part of each run of the tests, the others of ./test --full. WANMETAL_FAULT_RUNS sets their number,
WANMETAL_FAULT_SEED repeats a single one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.engine import LOCK, Engine, Outcome
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import exclusive
from ansible_collections.wanmetal.comfyui.tests.origin.house import KB, MB, House
from ansible_collections.wanmetal.comfyui.tests.origin.origin import Blob, Fault, Origin
from ansible_collections.wanmetal.comfyui.tests.origin.program import children, start

RUNS = int(os.environ.get("WANMETAL_FAULT_RUNS", "300"))
SEED = os.environ.get("WANMETAL_FAULT_SEED")
AT_ONCE = 6
SHARES = 6

HUB = ["reset", "html", "lie_size", "lie_hash", "silent"]
CDN = ["drop", "stall", "slow", "corrupt", "html", "reset", "no_ranges", "longer", "shorter"]
HUB_STATUS = [401, 403, 404, 429, 500, 503]
CDN_STATUS = [403, 404, 416, 429, 500, 503]


def some_fault(chance: random.Random, name: str) -> Fault:
    """Return one fault for one file."""
    where = chance.choice(["hub", "cdn", "cdn"])
    kinds = HUB if where == "hub" else CDN
    kind = chance.choice([*kinds, "status", "status"])
    return Fault(
        kind,
        where,
        # Slow ones only a few times, or a run takes minutes.
        times=chance.choice([1, 1, 2, 3] if kind in {"slow", "stall"} else [1, 1, 1, 2, 3, 50]),
        status=chance.choice(HUB_STATUS if where == "hub" else CDN_STATUS),
        name=name,
        at=chance.random(),
        headers={"Retry-After": chance.choice(["0", "0", "99999"])},
        rate=chance.choice([1_000_000, 4_000_000]),
    )


def kill_all(house: House) -> None:
    """Kill aria2c."""
    for child in children(house):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def interrupted(house: House, wanted: list[Wanted], chance: random.Random, settings: dict[str, Any], how: str) -> None:
    """Run, and break it off at some moment."""
    after = chance.random() * 0.25
    if how == "program":
        process = start(house, wanted, **settings)
        threading.Event().wait(0.1 + after)
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        process.wait()
        return
    with exclusive(house.state / LOCK, 10) as lock:
        engine = Engine(wanted, house.settings(**settings), lock)
        if how == "stop":
            threading.Timer(after, engine.stop).start()
        else:
            threading.Timer(after, kill_all, [house]).start()
        engine.run()


def one_run(seed: int, origin: Origin, folder: Path) -> str:
    """Do one run; return what is wrong with it."""
    chance = random.Random(seed)  # noqa: S311
    house = House(folder / str(seed), origin)
    sizes = [20 * KB, 300 * KB, 1200 * KB, 3 * MB]
    blobs = [house.blob(f"{seed}-{n}.safetensors", chance.choice(sizes) + n) for n in range(chance.randint(1, 4))]
    wanted: list[Wanted] = []
    for blob in blobs:
        known: dict[str, Any] = {} if chance.random() < 0.6 else {"sha256": None, "bytes": None}
        if chance.random() < 0.2:
            known["urls"] = (origin.hub_url(blob.name), origin.moved_url(blob.name))
        wanted.append(house.want(blob, **known))
    faults = [some_fault(chance, chance.choice(blobs).name) for _ in range(chance.randint(1, 5))]
    settings: dict[str, Any] = {
        "connections": chance.choice([1, 2, 8, 16]),
        "parallel": chance.choice([1, 4]),
        "tries": 4,
        "stall_s": 0.5,
        "timeout_s": 2.0,
    }
    origin.fail(*faults)
    how = chance.choice(["", "", "stop", "aria2c", "aria2c", "program"])
    if how:
        interrupted(house, wanted, chance, settings, how)
        if house.wrong_names():
            return f"after {how}: wrong files have their names: {house.wrong_names()}"
    with exclusive(house.state / LOCK, 10) as lock:
        outcome = Engine(wanted, house.settings(**settings), lock).run()
    problem = judge(house, blobs, outcome)
    if problem:
        return problem
    for fault in faults:
        fault.times = 0
    with exclusive(house.state / LOCK, 10) as lock:
        healed = Engine(wanted, house.settings(**settings), lock).run()
    if healed.failed or not all(house.right(blob) for blob in blobs):
        return f"not well after the faults are over: {healed.failed}"
    return f"left behind: {house.leftovers()}" if house.leftovers() else ""


def judge(house: House, blobs: list[Blob], outcome: Outcome) -> str:
    """Return what is wrong with what a run has left."""
    if house.wrong_names():
        return f"wrong files have their names: {house.wrong_names()}"
    named = {failure["file"]: failure for failure in outcome.failed}
    for blob in blobs:
        failure = named.get(blob.name)
        if house.right(blob) == bool(failure):
            return f"{blob.name} is {'right, and called' if failure else 'not right, and not called'} failed"
        if failure and (len(failure["problem"]) < 10 or not failure["kind"]):
            return f"{blob.name}: the error says nothing: {failure}"
    return ""


@pytest.mark.parametrize("share", [0, *(pytest.param(share, marks=pytest.mark.slow) for share in range(1, SHARES))])
def test_faults_at_random_points(share: int, tmp_path: Path) -> None:
    seeds = [int(SEED)] if SEED else list(range(share, RUNS, SHARES))
    with Origin() as origin, ThreadPoolExecutor(AT_ONCE) as pool:
        results = pool.map(lambda seed: (seed, one_run(seed, origin, tmp_path)), seeds)
        wrong = [f"WANMETAL_FAULT_SEED={seed}: {problem}" for seed, problem in results if problem]
    assert not wrong, "\n".join(wrong)
