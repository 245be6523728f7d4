"""The fleet's queue against a real PostgreSQL, as clients and workers see it."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.wanmetal.comfyui.tests.queue.fleet import ROOT, Fleet, environment, fleet, until
from ansible_collections.wanmetal.comfyui.tests.web import Request, body, hosting, reply
from wanmetal_queue.waiters import Need, Waiters, Worker


@pytest.fixture(scope="module")
def queue() -> Iterator[Fleet]:
    with fleet(waiting="20", attempts="2", lost_after="120") as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(queue: Fleet) -> None:
    queue.database.sql("DELETE FROM jobs")


def nothing_for(queue: Fleet, path: str, query: str = "", seconds: float = 1.5) -> None:
    """There is nothing for this worker: its request is held."""
    with pytest.raises(requests.Timeout):
        queue.south(path, query=query, timeout=seconds)


def test_a_job_s_way(queue: Fleet) -> None:
    assert queue.run("way", {"n": 1}) == {"id": "way", "status": "IN_QUEUE"}
    assert queue.take() == {"id": "way", "attempt": 1, "input": {"n": 1}}
    assert queue.status("way") == "IN_PROGRESS"
    queue.done("pod", "way", {"status": "IN_PROGRESS", "output": {"step": 1}})
    assert queue.call("status/way")["output"] == {"step": 1}
    queue.done("pod", "way", {"output": {"video": "…"}})
    answer = queue.call("status/way")
    assert (answer["status"], answer["output"]) == ("COMPLETED", {"video": "…"})
    assert answer["executionTime"] >= 0 <= answer["delayTime"]
    queue.done("pod", "way", {"status": "IN_PROGRESS", "output": {"step": 2}})  # from a thread that was slow
    queue.done("pod", "way", {"error": "a second end"})
    assert queue.call("status/way") == answer


def test_a_worker_that_asked_while_the_workers_were_read_is_given_jobs(queue: Fleet) -> None:
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(queue.take, "early")
        until(lambda: queue.database.sql("SELECT 1 FROM workers WHERE name = 'host1/early'"))
        queue.database.sql("DELETE FROM workers")  # as where it was read before this worker was written
        queue.command("token-add", "client", "another")
        queue.run("early", {})
        assert held.result()["id"] == "early"
    queue.command("token-revoke", "client", "another")


@pytest.mark.parametrize(
    ("result", "status", "key", "value"),
    [
        ({}, "COMPLETED", "output", None),
        ({"output": None}, "COMPLETED", "output", None),
        ({"output": "a\0b\ud800"}, "COMPLETED", "output", "a\0b\ud800"),
        ({"error": "a\0b"}, "FAILED", "error", "a\ufffdb"),
        ({"error": {"type": "OSError"}, "output": 1}, "FAILED", "error", '{"type": "OSError"}'),
    ],
)
def test_results(queue: Fleet, result: Any, status: str, key: str, value: Any) -> None:
    queue.run("result", {"zero": "\0"})
    assert queue.take()["input"] == {"zero": "\0"}
    queue.done("pod", "result", result)
    answer = queue.call("status/result")
    assert (answer["status"], answer.get(key)) == (status, value)


def test_a_result_that_is_no_json_is_an_end_all_the_same(queue: Fleet) -> None:
    queue.run("broken", {})
    queue.take()
    url = f"http://127.0.0.1:{queue.port}/v2/any/job-done/pod/broken?x=y"
    assert requests.post(url, data=b"\xff{", headers={"Authorization": queue.host}, timeout=9).status_code == 200
    assert queue.status("broken") == "FAILED"


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ([], 400, "form"),
        ({"n": 1}, 400, "form"),
        ({"input": {}, "id": "a\0b"}, 400, "id has"),
        ({"input": {}, "id": "../x"}, 400, "id has"),
        ({"input": {}, "policy": {"ttl": 5}}, 400, "policy.ttl"),
        ({"input": {}, "policy": {"executionTimeout": True}}, 400, "policy.executionTimeout"),
        ({"input": {}, "policy": {"priority": "high"}}, 400, "policy.priority"),
        ({"input": {}, "webhook": "ftp://example.com"}, 400, "webhook"),
        ({"input": {}, "webhook": "http://:password@example.com"}, 400, "webhook"),
        ({"input": {}, "requires": {"gpu": 1}}, 400, "requires"),
        ({"input": {}, "requires": {"workflow": "w" * 9000}}, 400, "200 characters"),
        ({"input": {}, "requires": {"release": "r" * 9000}}, 400, "200 characters"),
        ({"input": "x" * 21_000_000}, 413, "20 MB"),
    ],
)
def test_what_is_refused(queue: Fleet, body: Any, status: int, why: str) -> None:
    assert why in queue.call("run", body, status=status)["error"]


def test_an_id_that_is_posted_often_is_one_job(queue: Fleet) -> None:
    threads = [threading.Thread(target=queue.run, args=("same", {"n": n})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.take()
    queue.done("pod", "same", {"output": 1})
    assert queue.run("same", {"n": 9}) == {"id": "same", "status": "COMPLETED"}
    assert queue.database.sql("SELECT count(*) FROM jobs") == "1"


def test_more_workers_at_once_than_connections_wait_for_their_turn(queue: Fleet) -> None:
    """None is told to come again later, which RunPod's SDK does no sooner than after 5 s."""
    with ThreadPoolExecutor(41) as pool:
        slow = pool.submit(queue.database.sql, "BEGIN; LOCK TABLE jobs; SELECT pg_sleep(2); COMMIT")
        until(lambda: slow.done() or queue.database.sql("SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock'"))
        polls = [
            pool.submit(nothing_for, queue, f"job-take/many{number}", "&job_in_progress=0", 6.0) for number in range(40)
        ]
        for poll in polls:
            poll.result()


def test_who_was_woken_and_left_wakes_another() -> None:
    waiters, first, second = Waiters(), Worker("a/1", "a", ("any",)), Worker("b/1", "b", ("any",))
    other, need = Worker("c/1", "c", ("special",)), Need("any")
    with waiters.worker(other), waiters.worker(second):
        with waiters.worker(first):
            pass
        assert not second.event.is_set()
        with waiters.worker(first):
            waiters.job(need)
            assert second.event.is_set()
            waiters.job(need)
            assert first.event.is_set()
            second.event.clear()
            second.woken_for = None  # it has looked
        assert second.event.is_set()
        assert not other.event.is_set()


def test_a_worker_that_asks_for_a_batch_of_none_is_given_one(queue: Fleet) -> None:
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(queue.south, "job-take-batch/none", query="&batch_size=0&job_in_progress=0")
        until(lambda: queue.database.sql("SELECT 1 FROM workers WHERE name = 'host1/none'"))
        queue.run("one", {})
        assert [job["id"] for job in held.result().json()] == ["one"]


def test_what_a_host_s_token_cannot_do_to_the_database(queue: Fleet) -> None:
    """Its workers' names neither look like a database that is away nor fill the tables."""
    for pod in ("x" * 300, "".join(f"{number:x}" for number in range(2000))):
        assert "200 characters" in queue.south(f"job-take/{pod}").json()["error"]
    assert "cannot be used" not in (queue.folder / "queue.log").read_text()
    workers = (
        "SELECT 'host1/many-' || n, 'host1', '', '{any}', 0, NULL, '', tick FROM state, generate_series(1, 1000) AS n"
    )
    queue.database.sql(f"INSERT INTO workers {workers}; NOTIFY wanmetal_queue, '[\"reload\"]'")
    more = itertools.count()
    until(lambda: queue.south(f"job-take/more-{next(more)}").status_code == 429)
    queue.run("known", {})
    assert queue.take("many-7")["id"] == "known"
    queue.database.sql("DELETE FROM workers; NOTIFY wanmetal_queue, '[\"reload\"]'")


def test_priorities_and_their_order(queue: Fleet) -> None:
    queue.run("low", {}, policy={"lowPriority": True})
    queue.run("first", {})
    queue.run("second", {})
    queue.run("high", {}, policy={"priority": 5})
    taken = []
    for _ in range(4):
        taken.append(queue.take()["id"])
        queue.done("pod", taken[-1], {"output": 1})
    assert taken == ["high", "first", "second", "low"]


def test_a_full_queue_says_when_to_come_again(queue: Fleet) -> None:
    for number in range(20):
        queue.run(f"full{number}", {})
    url = f"http://127.0.0.1:{queue.port}/v2/any/run"
    answer = requests.post(url, json={"input": {}}, headers={"Authorization": queue.client}, timeout=9)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "10")
    assert queue.run("full3", {})["status"] == "IN_QUEUE"  # known, so it takes no room
    assert queue.call("purge-queue", {}) == {"removed": 20, "status": "completed"}
    assert queue.run("room", {})["status"] == "IN_QUEUE"


def test_time_to_live_and_execution_limit(queue: Fleet) -> None:
    queue.run("old", {}, policy={"ttl": 1000, "priority": -5})
    queue.run("long", {}, policy={"executionTimeout": 1000})
    assert queue.take()["id"] == "long"
    until(lambda: queue.status("old") == queue.status("long") == "TIMED_OUT")
    assert "time to live" in queue.call("status/old")["error"]
    assert "longer" in queue.call("status/long")["error"]
    assert queue.south("job-stop/pod").json() == {"jobsToStop": ["long"]}
    queue.done("pod", "long", {"output": "too late"})
    assert queue.status("long") == "TIMED_OUT"


def test_cancel_reaches_the_worker(queue: Fleet) -> None:
    queue.run("stop", {})
    queue.take()
    heard: list[Any] = []
    listener = threading.Thread(target=lambda: heard.append(queue.south("job-stop/pod")))
    listener.start()
    assert queue.call("cancel/stop", {})["status"] == "CANCELLED"
    listener.join()
    assert heard[0].json() == {"jobsToStop": ["stop"]}
    assert queue.south("job-stop/pod").json() == {"jobsToStop": ["stop"]}, "told again until the worker has ended it"
    queue.run("next", {})
    assert queue.take()["id"] == "next"  # with job_in_progress=0: it has nothing any more
    nothing_for(queue, "job-stop/pod")
    assert queue.call("stream/stop")["status"] == "FAILED", "RunPod's client would never end"
    queue.run("waits", {})
    assert queue.call("cancel/waits", {})["status"] == "CANCELLED"


def test_a_cancel_that_meets_the_result(queue: Fleet) -> None:
    for number in range(5):
        id_ = f"meet{number}"
        queue.run(id_, {})
        queue.take()
        threads = [
            threading.Thread(target=queue.call, args=(f"cancel/{id_}", {})),
            threading.Thread(target=queue.done, args=("pod", id_, {"output": 1})),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answer = queue.call(f"status/{id_}")
        assert (answer["status"], answer.get("output")) in [("CANCELLED", None), ("COMPLETED", 1)]


def test_a_worker_that_asks_with_empty_hands_has_lost_its_job(queue: Fleet) -> None:
    queue.run("lost", {})
    assert queue.take()["attempt"] == 1
    assert queue.take() == {"id": "lost", "attempt": 2, "input": {}}
    nothing_for(queue, "job-take/pod", query="&job_in_progress=0")
    assert "2 times" in queue.call("status/lost")["error"]


def test_of_two_workers_with_a_job_the_first_result_wins(queue: Fleet) -> None:
    queue.run("silent", {})
    queue.take("gone")
    queue.database.sql("UPDATE jobs SET taken = taken - 60")
    queue.south("ping/gone", query="&job_id=another")
    assert queue.take("other") == {"id": "silent", "attempt": 2, "input": {}}
    queue.done("gone", "silent", {"output": "of the first"})
    assert queue.call("status/silent")["output"] == "of the first"
    assert queue.south("job-stop/other").json() == {"jobsToStop": ["silent"]}
    queue.done("other", "silent", {"output": "of the second"})
    assert queue.call("status/silent")["output"] == "of the first"


def test_what_a_ping_does_not_list_is_lost(queue: Fleet) -> None:
    queue.run("unlisted", {})
    queue.take("several")
    queue.database.sql("UPDATE jobs SET taken = taken - 30")
    assert queue.south("ping/several", query="&job_id=unlisted,x").status_code == 200
    assert queue.status("unlisted") == "IN_PROGRESS"
    assert queue.south("ping/several", query="&job_id=x").status_code == 200
    assert queue.status("unlisted") == "IN_QUEUE"


def test_retry(queue: Fleet) -> None:
    queue.run("again", {"n": 1}, s3Config={"accessSecret": "hidden"})
    assert queue.take()["s3Config"] == {"accessSecret": "hidden"}
    queue.done("pod", "again", {"error": "no luck"})
    assert queue.call("retry/again", {})["status"] == "IN_QUEUE"
    queue.done("pod", "again", {"output": "of the attempt before"})
    assert queue.status("again") == "IN_QUEUE"
    job = queue.take()
    assert (job["attempt"], job["input"], job["s3Config"]) == (2, {"n": 1}, {"accessSecret": "hidden"})
    queue.done("pod", "again", {"output": 1})
    assert queue.status("again") == "COMPLETED"
    assert "FAILED or TIMED_OUT" in queue.call("retry/again", {}, status=400)["error"]
    assert "hidden" not in json.dumps(queue.call("status/again"))
    assert queue.database.sql("SELECT count(secret) FROM jobs") == "0"


def test_stream(queue: Fleet) -> None:
    queue.run("parts", {})
    queue.take()
    for number in range(3):
        queue.south("job-stream/pod/parts", {"output": number})
    assert queue.call("stream/parts")["stream"] == [{"output": 0}, {"output": 1}, {"output": 2}]
    queue.done("pod", "parts", {"output": []})
    assert queue.call("stream/parts") == {"id": "parts", "status": "COMPLETED", "stream": []}


def test_runsync_waits(queue: Fleet) -> None:
    answers: list[Any] = []
    body = {"id": "sync", "input": {}}
    waiting = threading.Thread(target=lambda: answers.append(queue.call("runsync?wait=20000", body)))
    waiting.start()
    queue.take()
    queue.done("pod", "sync", {"output": 7})
    waiting.join()
    assert answers[0]["output"] == 7
    assert queue.call("runsync?wait=0", {"input": {}})["status"] == "IN_QUEUE"
    assert "wait" in queue.call("runsync?wait=x", {"input": {}}, status=400)["error"]


def test_what_hosts_can_do(queue: Fleet) -> None:
    token = queue.command("token-add", "host", "big", "--queues", "any,special")
    queue.run("first", {})
    job = queue.south("job-take/p", token=token, query="&vram=80&workflows=Wan,Canny&release=r1&job_in_progress=0")
    assert job.json()["id"] == "first"
    queue.south("job-done/p/first", {"output": 1}, token=token)
    refused = {
        "vram99": ({}, "99 GB"),
        "any": ({"workflow": "Flux"}, "the workflow Flux; there are: Canny, Wan"),
        "nothing": ({}, "no host serves"),
    }
    queue.database.sql("DELETE FROM workers WHERE host <> 'big'; NOTIFY wanmetal_queue, '[\"reload\"]'")
    time.sleep(0.5)
    for endpoint, (given, why) in refused.items():
        status = 404 if endpoint == "nothing" else 400
        assert why in queue.call("run", {"input": given}, endpoint=endpoint, status=status)["error"]
    wanted = {"requires": {"vram": 24, "release": "r2"}, "input": {}}
    assert "release r2; there are: r1" in queue.call("run", wanted, status=400)["error"]
    queue.call("run", {"input": {}, "id": "needs24"}, endpoint="vram24")
    queue.call("run", {"input": {}, "id": "wan"}, endpoint="Wan")
    nothing_for(queue, "job-take/small", query="&vram=12&workflows=Canny&job_in_progress=0")
    taken = [queue.south("job-take/p", token=token, query="&vram=80&workflows=Wan,Canny&release=r1") for _ in "12"]
    assert [answer.json()["id"] for answer in taken] == ["needs24", "wan"]
    queue.command("token-revoke", "host", "big")


def test_a_host_s_token_takes_its_queues_jobs_and_nothing_else(queue: Fleet) -> None:
    other = queue.command("token-add", "host", "thief", "--queues", "scrap")
    with ThreadPoolExecutor(3) as pool:  # each of these is held for a while
        paths = ("job-take/pod", "job-stop/pod", "ping/pod")
        refused = [pool.submit(queue.south, path, token=other) for path in paths]
        assert [answer.result().status_code for answer in refused] == [403, 403, 403]
    queue.run("theirs", {})
    queue.take()
    queue.command("token-add", "host", "thief", "--queues", "any", "--hash", hashlib.sha256(other.encode()).hexdigest())
    until(lambda: queue.south("job-done/pod/theirs", {"output": "stolen"}, token=other).status_code == 200)
    assert queue.status("theirs") in {"IN_PROGRESS", "IN_QUEUE"}, "another host's job is not its to end"
    assert queue.call("status/theirs", status=401, token=other)
    assert queue.south("job-take/pod", token=queue.client).status_code == 401
    assert queue.call("run", {"input": {}}, status=401, token="?")  # noqa: S106
    queue.command("token-revoke", "host", "thief")
    until(lambda: queue.south("ping/pod", token=other).status_code == 401)
    assert other not in queue.database.sql("SELECT * FROM tokens")


def test_a_client_s_token_for_one_endpoint(queue: Fleet) -> None:
    token = queue.command("token-add", "client", "guest", "--queues", "vram24")
    until(lambda: queue.ask("health", token=token).status_code != 401)
    assert "vram24" in queue.call("run", {"input": {}}, token=token, status=403)["error"]
    assert queue.call("health", token=token, endpoint="vram24")["jobs"]["inQueue"] == 0


def test_pause_and_drain(queue: Fleet) -> None:
    queue.command("pause", "any")
    queue.run("held", {})
    nothing_for(queue, "job-take/held", query="&job_in_progress=0")
    queue.command("resume")
    assert queue.take("held")["id"] == "held"
    assert "still has 1" in queue.command("drain", "host1")
    until(lambda: queue.south("job-take/idle").status_code == 429)
    queue.done("held", "held", {"output": 1})
    assert "has no job" in queue.command("drain", "host1", "--wait", "5")
    queue.command("undrain", "host1")
    queue.run("after", {})
    assert until(lambda: (answer := queue.south("job-take/idle")).status_code == 200 and answer.json())["id"] == "after"


def test_a_drain_ends_the_poll_that_is_held(queue: Fleet) -> None:
    answers: list[Any] = []
    poll = threading.Thread(target=lambda: answers.append(queue.south("job-take/holds")))
    poll.start()
    time.sleep(0.5)
    queue.command("drain", "host1")
    poll.join()
    queue.command("undrain", "host1")
    assert answers[0].status_code == 429


def test_a_drain_with_an_end_ends_by_itself(queue: Fleet) -> None:
    def told() -> list[Any]:
        [host] = json.loads(queue.command("status", "--json"))["hosts"][:1]
        return [host["draining"], host["drain_ends_in_s"]]

    queue.run("waits", {})
    queue.command("drain", "host1", "--for", "600")
    until(lambda: queue.south("job-take/idle").status_code == 429)
    draining, ends = told()
    assert draining
    assert 0 < ends <= 600
    assert re.search(r"host1/idle +drained for \d", queue.command("status"))
    queue.command("drain", "host1", "--for", "2")
    assert until(lambda: (answer := queue.south("job-take/idle")).status_code == 200 and answer.json())["id"] == "waits"
    assert told() == [False, None]
    queue.command("drain", "host1")
    assert told() == [True, None], "an operator's has no end"
    queue.command("undrain", "host1")
    assert told() == [False, None]


def test_what_an_operator_reads_fits_a_terminal(queue: Fleet) -> None:
    queue.run("read", {})
    queue.south(
        "job-take/handler", query="&vram=24&release=r1&workflows=" + ",".join(f"workflow{n}" for n in range(20))
    )
    lines = queue.command("status").splitlines()
    assert max(map(len, lines)) <= 80
    heads, host = [line.split() for line in lines if line.startswith(("host ", "host1 "))]
    assert heads == ["host", "state", "seen", "jobs", "GPU", "release", "workflows"]
    assert host[:2] + host[3:9] == ["host1", "busy", "s", "ago", "1", "24", "GB", "r1"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["drain", "nosuch"], "there is no host nosuch\n  found   host1"),
        (["undrain", "nosuch"], "there is no host nosuch\n  found   host1"),
        (["token-revoke", "client", "nosuch"], "there is no client nosuch\n  found   "),
    ],
)
def test_a_name_that_is_not_known_is_refused_with_those_that_are(queue: Fleet, words: list[str], why: str) -> None:
    said = queue.command(*words, good=False)
    assert why in said
    assert "\n  fix     correct the name" in said


def test_the_tables_go_back_to_an_earlier_release_s_and_forth(queue: Fleet) -> None:
    queue.database.sql("CREATE DATABASE other")
    address = queue.database.address.replace("dbname=queue", "dbname=other")

    def migrate(steps: str) -> str:
        code = f"from wanmetal_queue import schema; print(schema.migrate({address!r}, schema.STEPS{steps}))"
        environ = {"PYTHONPATH": str(ROOT / "services/queue")}
        done = subprocess.run(
            [environment("queue"), "-c", code], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def drained(where: str) -> bool:
        return queue.database.sql("SELECT name FROM tokens WHERE " + where, "other") == "host"  # noqa: S608

    assert migrate("[:1]") == "tables of step 1, before 0"
    queue.database.sql("INSERT INTO tokens VALUES ('h', 'host', 'host', '{any}', true)", "other")
    assert migrate("") == "tables of step 2, before 1"
    assert drained("drained_until = 'Infinity'")
    assert migrate("[:1]") == "tables of step 1, before 2"
    assert drained("draining")
    assert migrate("[:0]") == "tables of step 0, before 1"
    assert migrate("") == "tables of step 2, before 0"
    queue.database.sql("DROP DATABASE other")


def test_old_results_go_and_young_ones_stay(queue: Fleet) -> None:
    for id_ in ("ancient", "young"):
        queue.run(id_, {})
        queue.take()
        queue.done("pod", id_, {"output": 1})
    queue.database.sql("UPDATE jobs SET finished = finished - 24 * 3600 - 1 WHERE id = 'ancient'")
    until(lambda: queue.database.sql("SELECT string_agg(id, ' ') FROM jobs") == "young")
    assert queue.call("status/ancient", status=404)


def test_webhook(queue: Fleet) -> None:
    came: list[tuple[str, bytes]] = []

    def receive(request: Request) -> None:
        came.append((request.headers["X-Wanmetal-Signature"], body(request)))
        reply(request, b"", 200 if len(came) > 1 else 503)

    with hosting(receive) as url:
        queue.run("told", {}, webhook=f"{url}/x")
        queue.take()
        queue.done("pod", "told", {"output": 1})
        until(lambda: queue.database.sql("SELECT webhook_due > tick + 5 AND webhook_tries = 1 FROM jobs, state") == "t")
        queue.database.sql("UPDATE jobs SET webhook_due = 0")  # its next try
        until(lambda: len(came) == 2)
    signature, told = came[1]
    at, _, value = signature.removeprefix("t=").partition(",v1=")
    key = hashlib.sha256(queue.client.encode()).hexdigest().encode()
    assert hmac.new(key, f"{at}.".encode() + told, "sha256").hexdigest() == value
    assert json.loads(told) == queue.call("status/told")
    until(lambda: queue.database.sql("SELECT webhook_due IS NULL FROM jobs WHERE id = 'told'") == "t")


def test_a_webhook_s_receiver_that_sends_a_byte_now_and_then_is_left() -> None:
    code = """
import socket, sys, threading, time
from wanmetal_queue import addresses, webhook
def drip():
    there = server.accept()[0]
    try:
        while True: there.send(b"H"); time.sleep(0.1)
    except OSError: print("left", flush=True)
with socket.create_server(("127.0.0.1", 0)) as server:
    thread = threading.Thread(target=drip); thread.start()
    webhook._SECONDS = 1.0
    try: webhook._post(f"http://127.0.0.1:{server.getsockname()[1]}/", b"{}", "", addresses.Networks("127.0.0.0/8"))
    except Exception as error: print(type(error).__name__)
    thread.join()
"""
    command, environ = [str(environment("queue")), "-c", code], {"PYTHONPATH": str(ROOT / "services/queue")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "left" in done.stdout


def test_the_clock_may_be_moved(queue: Fleet) -> None:
    """No statement reads the wall clock, which a test cannot move: the queue's own begins where it was."""
    before = float(queue.database.sql("SELECT tick FROM state"))
    queue.run("timed", {}, policy={"ttl": 600_000})
    queue.database.sql("UPDATE state SET tick = tick + 3600")  # what a service that starts would find
    until(lambda: abs(float(queue.database.sql("SELECT tick FROM state")) - before) < 60)
    assert queue.status("timed") == "IN_QUEUE"


def test_a_restart_and_a_database_that_is_away(queue: Fleet) -> None:
    queue.run("kept", {})
    queue.take("stays")
    queue.stop()
    queue.start()
    assert queue.status("kept") == "IN_PROGRESS"
    queue.database.kill()
    try:
        assert queue.south("job-take/other", query="&job_in_progress=0").status_code == 429
        assert queue.call("run", {"input": {}}, status=503)
        answers: list[Any] = []
        sender = threading.Thread(target=lambda: answers.append(queue.south("job-done/stays/kept", {"output": 1})))
        sender.start()
    finally:
        queue.database.start()
    sender.join(60)
    assert answers[0].status_code == 200
    assert queue.call("status/kept")["output"] == 1


def test_two_services_share_the_jobs_of_one_database(queue: Fleet) -> None:
    with queue.another() as port, ThreadPoolExecutor(2) as pool:

        def ask(path: str) -> Any:
            url = f"http://127.0.0.1:{port}/v2/any/{path}?x=y&job_in_progress=0"
            return requests.get(url, headers={"Authorization": queue.host}, timeout=60)

        held = pool.submit(ask, "job-take/far")
        until(lambda: queue.database.sql("SELECT 1 FROM workers WHERE name = 'host1/far'"))
        queue.run("shared", {})
        assert held.result().json()["id"] == "shared"
        stops = pool.submit(lambda: until(lambda: (answer := ask("job-stop/far")).status_code == 200 and answer.json()))
        queue.call("cancel/shared", {})
        assert stops.result() == {"jobsToStop": ["shared"]}


def test_numbers_for_programs_on_its_host(queue: Fleet) -> None:
    def counts() -> Any:
        return requests.get(f"http://127.0.0.1:{queue.port}/counts", timeout=30).json()

    nothing = {"completed": 0, "failed": 0, "inProgress": 0, "inQueue": 0}
    assert (counts()["jobs"], counts()["oldestWaiting"]) == (nothing, None)
    queue.run("counted-1", {})
    queue.take()
    queue.done("pod", "counted-1", {"output": 1})
    queue.run("counted-2", {})
    found = counts()
    assert found["jobs"] == nothing | {"completed": 1, "inQueue": 1}
    assert found["oldestWaiting"] >= 0
    assert found["hosts"] >= 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": {"a": 1e999}}',
        b'{"input": {"a": [-1e400]}}',
        b'{"input": {}, "s3Config": {"a": 1e999}}',
        b'{"input": {}, "id": 0}',
        b'{"input": {}, "id": false}',
        b'{"input": {}, "id": []}',
        b'{"input": {}, "policy": {"ttl": 1' + b"0" * 400 + b"}}",
        b'{"input": {}, "requires": {"release": "a\\u0000"}}',
        b'{"input": {}, "requires": {"workflow": "\\ud800"}}',
    ],
)
def test_what_cannot_be_kept_is_refused(queue: Fleet, body: bytes) -> None:
    headers = {"Authorization": f"bearer {queue.client}"}
    answer = requests.post(f"http://127.0.0.1:{queue.port}/v2/any/run", data=body, headers=headers, timeout=60)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert queue.database.sql("SELECT count(*) FROM jobs") == "0"


@pytest.mark.parametrize(
    "path", ["a%00/health", "any/status/a%00", "any/stream/a%00", "any/cancel/%00", "any/retry/%00"]
)
def test_addresses_with_a_nul_are_refused(queue: Fleet, path: str) -> None:
    headers = {"Authorization": f"Bearer {queue.client}"}
    answer = requests.get(f"http://127.0.0.1:{queue.port}/v2/{path}", headers=headers, timeout=60)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


@pytest.mark.parametrize(
    "path",
    ["job-take/%00", "job-take/p?release=%00", "job-take/p?workflows=a%00", "job-done/p/%00", "ping/p?job_id=%00"],
)
def test_workers_with_a_nul_are_refused(queue: Fleet, path: str) -> None:
    path, _, query = path.partition("?")
    answer = queue.south(path, {} if "done" in path else None, query=f"&{query}")
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


@pytest.mark.parametrize(
    ("result", "status", "answer"),
    [
        (b'{"error": "\\ud800"}', "FAILED", {"error": "?"}),
        (b'{"error": "a\\u0000"}', "FAILED", {"error": "a\ufffd"}),
        (b'{"error": 0}', "COMPLETED", {}),
        (b'{"error": false, "output": 1}', "COMPLETED", {"output": 1}),
        (b'{"output": [1e999, -1e999, 1.5]}', "COMPLETED", {"output": [None, None, 1.5]}),
    ],
)
def test_results_that_cannot_be_kept_as_they_are(queue: Fleet, result: bytes, status: str, answer: Any) -> None:
    queue.run("odd", {})
    assert queue.take("pod", f"&batch_size={'9' * 5000}")["id"] == "odd"
    url = f"http://127.0.0.1:{queue.port}/v2/any/job-done/pod/odd"
    headers = {"Authorization": f"Bearer {queue.host}"}
    assert requests.post(url, data=result, headers=headers, timeout=60).status_code == 200
    told = queue.call("status/odd")
    assert told["status"] == status
    assert {name: told[name] for name in ("error", "output") if name in told} == answer


def restored(queue: Fleet, folder: Path, dump: bytes) -> tuple[int, str]:
    (folder / "dump").write_bytes(dump)
    with (folder / "dump").open("rb") as file:
        code, _unused, problem = queue.ran("restore", given=file.fileno())
    return code, problem


def test_what_is_no_dump_of_a_queue_replaces_nothing(queue: Fleet, tmp_path: Path) -> None:
    queue.run("kept", {})
    _code, whole, _unused = queue.ran("dump")
    queue.database.sql("CREATE DATABASE other")
    queue.database.sql("CREATE TABLE things (n integer)", "other")
    other = subprocess.run(
        ["pg_dump", "-Fc", queue.database.address.replace("dbname=queue", "dbname=other")],
        capture_output=True,
        check=True,
    ).stdout
    strange = [(b"", "too short"), (b"x" * 9999, "not appear to be"), (whole[:3000], ""), (other, "no table jobs")]
    for dump, said in strange:
        code, problem = restored(queue, tmp_path, dump)
        assert (code, said in problem) == (1, True), problem
        assert queue.database.sql("SELECT id FROM jobs") == "kept"
    for end in (len(whole) - 1, len(whole) - 300):  # the list is whole, and the tables are not
        restored(queue, tmp_path, whole[:end])
        assert queue.database.sql("SELECT id FROM jobs") == "kept"
    queue.database.sql("DELETE FROM jobs")
    assert restored(queue, tmp_path, whole) == (0, "")
    assert queue.database.sql("SELECT id FROM jobs") == "kept"
    queue.database.sql("DROP DATABASE other")
