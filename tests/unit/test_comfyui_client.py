from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import (
    BadAnswerError,
    ComfyUIClient,
    NoAnswerError,
    PromptFailedError,
    PromptRejectedError,
    PromptTimeoutError,
)
from ansible_collections.wanmetal.comfyui.tests.unit.fake_comfyui import Fake, serve
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import GRAPH as VIDEO
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import scripted
from ansible_collections.wanmetal.comfyui.tests.web import Request, reply

GRAPH: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0}}
}


def answer(data: bytes, **how: Any) -> Callable[[Request], None]:
    return lambda handler: reply(handler, data, **how)


def close(_: Request) -> None:
    return


def hang(_: Request) -> None:
    time.sleep(60)


def trickle(handler: Request) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1200):
        handler.wfile.write(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8188", "must look like"),
        ("ftp://127.0.0.1", "must look like"),
        ("http://", "must look like"),
        ("http://host/?a=b", "must look like"),
        ("http://me:hunter2@host", "must not hold a user name"),
    ],
)
def test_a_bad_address(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComfyUIClient(url)


def test_a_render_leaves_no_trace() -> None:
    fake = Fake()
    with serve(fake) as url:
        client = ComfyUIClient(url + "/")
        assert client.system_stats()["system"]["comfyui_version"] == "0.3.75"
        assert client.queue() == {"queue_running": [], "queue_pending": []}
        assert client.render(GRAPH, 5, front=True) == {}
    assert fake.history == {}
    [(_, body)] = [request for request in fake.requests if request[0] == "POST /prompt"]
    assert {**body, "client_id": ""} == {"prompt": GRAPH, "front": True, "client_id": ""}


@pytest.mark.parametrize(
    ("special", "error", "message"),
    [
        (answer(b"<html>", kind="text/html"), BadAnswerError, "answered 200 with text/html instead of JSON"),
        (answer(b"", status=502), BadAnswerError, "answered 502"),
        (answer(b"[]"), BadAnswerError, "answered a list"),
        (answer(b'{"a": 1}'), BadAnswerError, "without queue_running"),
        (answer(b"{}", status=500), BadAnswerError, "answered 500"),
        (answer(b"{}", claim=10), NoAnswerError, "does not answer: IncompleteRead"),
        (close, NoAnswerError, "does not answer"),
        (hang, NoAnswerError, "gave no complete answer in 0.4 s"),
        (trickle, NoAnswerError, "gave no complete answer in 0.4 s"),
    ],
)
def test_bad_answers(special: Callable[[Request], None], error: type[Exception], message: str) -> None:
    with serve(Fake(special={"/queue": special})) as url:
        started = time.monotonic()
        with pytest.raises(error, match=message):
            ComfyUIClient(url, timeout_s=0.4 if special in (hang, trickle) else 30).queue()
        assert time.monotonic() - started < 20


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(NoAnswerError, match="Connection refused"):
            ComfyUIClient(f"http://127.0.0.1:{free.getsockname()[1]}").system_stats()


def test_a_proxy_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with serve(Fake()) as url:
        assert ComfyUIClient(url).system_stats()


REJECTED = {
    "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed", "details": "see nodes"},
    "node_errors": {
        "7": {
            "class_type": "SaveVideo",
            "errors": [{"type": "value_not_in_list", "message": "Value not in list", "details": "codec: 'x'"}],
        }
    },
}


def test_node_errors_are_kept() -> None:
    with serve(Fake(reject=REJECTED)) as url, pytest.raises(PromptRejectedError) as caught:
        ComfyUIClient(url).submit(GRAPH)
    assert "node 7 (SaveVideo): Value not in list: codec: 'x'" in str(caught.value)
    assert caught.value.node_errors == REJECTED["node_errors"]


def test_a_graph_that_is_accepted_in_part_is_taken_back() -> None:
    body = b'{"prompt_id": "p", "node_errors": {"7": {"class_type": "X", "errors": []}}}'
    fake = Fake(special={"/prompt": answer(body)})
    with serve(fake) as url, pytest.raises(PromptRejectedError):
        ComfyUIClient(url).submit(GRAPH)
    assert ("POST /queue", {"delete": ["p"]}) in fake.requests


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            {"status_str": "error", "messages": [["execution_error", {"node_id": "3", "node_type": "VAEDecode",
             "exception_type": "RuntimeError", "exception_message": "no kernel image\n"}]]},
            r"node 3 \(VAEDecode\) failed with RuntimeError: no kernel image$",
        ),
        ({"status_str": "error", "messages": [["execution_interrupted", {}]]}, "was interrupted"),
        ({"status_str": "error"}, "ended with status 'error'"),
        ({"status_str": "error", "messages": ["odd", [1]]}, "ended with status 'error'"),
    ],
)  # fmt: skip
def test_a_graph_that_fails(status: dict[str, Any], message: str) -> None:
    with serve(Fake(status=status)) as url, pytest.raises(PromptFailedError, match=message):
        ComfyUIClient(url).render(GRAPH, 5)


@pytest.mark.parametrize(
    ("queue", "message"),
    [("queue_running", "it is running"), ("queue_pending", "it is still in the queue")],
)
def test_a_graph_that_never_ends_is_cancelled(queue: str, message: str) -> None:
    fake = Fake(stays=queue)
    with serve(fake) as url, pytest.raises(PromptTimeoutError, match=message):
        ComfyUIClient(url).render(GRAPH, 0.2)
    prompt_id = fake.queue[queue][0][1]
    assert ("POST /queue", {"delete": [prompt_id]}) in fake.requests
    assert ("POST /interrupt", {"prompt_id": prompt_id}) in fake.requests


def test_a_graph_behind_another_job() -> None:
    fake = Fake(stays="queue_pending")
    fake.queue["queue_running"].append([0, "other", {}])
    with serve(fake) as url, pytest.raises(PromptTimeoutError, match="another job is running"):
        ComfyUIClient(url).render(GRAPH, 0.2)


def test_a_graph_that_is_lost() -> None:
    with serve(Fake()) as url, pytest.raises(PromptFailedError, match="knows nothing of the graph"):
        ComfyUIClient(url).wait("unknown", 10)


@pytest.mark.parametrize("body", [b'{"p": {}}', b'{"p": {"outputs": []}}', b'{"p": 1}'])
def test_odd_histories(body: bytes) -> None:
    with serve(Fake(special={"/history": answer(body)})) as url, pytest.raises(BadAnswerError):
        ComfyUIClient(url).history("p")


def test_files() -> None:
    with serve(Fake(files={"a b.png": b"data"})) as url:
        assert ComfyUIClient(url).view("a b.png", "x", "temp") == b"data"
        with pytest.raises(BadAnswerError, match=r"answered 404 for c\.png in folder output"):
            ComfyUIClient(url).view("c.png")


def test_a_file_is_uploaded_into_a_folder_of_input() -> None:
    with scripted() as (fake, url):
        given = ComfyUIClient(url).upload("a.png", b"\x89PNG\r\n--x\r\n\0", "handler")
    assert given == "handler/a.png"
    assert fake.uploads == {"a.png": b"\x89PNG\r\n--x\r\n\0"}


def test_an_upload_that_is_refused() -> None:
    with scripted() as (fake, url):
        fake.special["/upload/image"] = lambda handler: reply(handler, b'{"error": "full"}', 500)
        with pytest.raises(BadAnswerError, match="/upload/image answered 500"):
            ComfyUIClient(url).upload("a.png", b"x")


def test_the_websocket_that_is_to_be_told_is_named_and_no_job_is_nobody_s() -> None:
    with scripted() as (fake, url):
        client = ComfyUIClient(url)
        client.submit(VIDEO, client_id="me")
        client.submit(VIDEO)
        client.submit(VIDEO)
    ids = [body["client_id"] for path, body in fake.requests if path == "POST /prompt"]
    assert ids[0] == "me"
    assert len(set(ids)) == 3
    assert all(ids)


def test_a_node_s_own_account_of_its_failure_is_kept() -> None:
    with scripted(end="error", error={"node_id": "4", "exception_type": "X"}) as (_, url):
        client = ComfyUIClient(url)
        with pytest.raises(PromptFailedError) as caught:
            client.render(VIDEO, 5)
    assert caught.value.node == {"node_id": "4", "exception_type": "X"}


def test_a_slow_answer_of_the_history_ends_no_wait() -> None:
    fake = Fake()
    with serve(fake) as url:
        client = ComfyUIClient(url, 0.3)
        prompt_id = client.submit(GRAPH)
        path = f"/history/{prompt_id}"
        found, slow = fake.get(path, {})[1], [1.0, 1.0]

        def late(handler: Request) -> None:
            if slow:
                time.sleep(slow.pop())
            reply(handler, json.dumps(found).encode())

        fake.special[path] = late
        assert client.wait(prompt_id, 60) == {}
        assert slow == []


def test_a_history_that_never_answers_ends_the_wait_at_its_limit() -> None:
    fake = Fake()
    with serve(fake) as url:
        client = ComfyUIClient(url, 0.2)
        prompt_id = client.submit(GRAPH)
        fake.special[f"/history/{prompt_id}"] = hang
        with pytest.raises(NoAnswerError, match="gave no complete answer"):
            client.wait(prompt_id, 1)
