"""The engine with a real aria2c and a local origin: what it fetches, what it says when something is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import content, plan
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.engine import LOCK, Engine
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.record import Record
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Tokens, parse_file
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import BusyError, exclusive
from ansible_collections.wanmetal.comfyui.tests.origin.house import KB, MB, House, sha256
from ansible_collections.wanmetal.comfyui.tests.origin.origin import Blob, Fault, Origin, Version
from ansible_collections.wanmetal.comfyui.tests.origin.program import children, start

TOKEN = "hf_very_secret_token"  # noqa: S105


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with Origin() as origin:
        yield House(tmp_path, origin)


def status(outcome: Any, blob: Blob) -> dict[str, Any]:
    return next(item for item in outcome.files if item["id"] == blob.name)


def test_a_list_is_fetched_once(house: House) -> None:
    blobs = [house.blob(f"{n}.safetensors", n * 700 * KB + 1) for n in range(1, 6)]
    wanted = [house.want(blob) for blob in blobs]
    first = house.run(wanted)
    assert (first.changed, first.failed) == (True, [])
    assert all(house.right(blob) for blob in blobs)
    assert house.leftovers() == []
    assert {status(first, blob)["proof"] for blob in blobs} == {"catalogue"}
    requests = len(house.origin.seen)
    second = house.run(wanted)
    assert (second.changed, {item["status"] for item in second.files}) == (False, {"present"})
    assert len(house.origin.seen) == requests, "an unchanged run asks no one"


def test_an_unknown_hash_is_verified_by_what_the_host_states(house: House) -> None:
    blob = house.blob("a.safetensors")
    outcome = house.run([house.want(blob, sha256=None, bytes=None)])
    assert (status(outcome, blob)["proof"], status(outcome, blob)["sha256"]) == ("host", blob.sha256)
    requests = len(house.origin.seen)
    assert not house.run([house.want(blob, sha256=None, bytes=None)]).changed
    assert len(house.origin.seen) == requests


def test_what_nothing_proves_gets_no_name(house: House) -> None:
    blob = house.blob("a.safetensors")
    wanted = house.want(blob, sha256=None, bytes=None, urls=(house.origin.moved_url(blob.name),))
    outcome = house.run([wanted])
    assert [failure["kind"] for failure in outcome.failed] == ["unverified"]
    assert not house.path(blob).exists()
    allowed = house.run([wanted], allow_unverified=True)
    assert status(allowed, blob)["proof"] == "size"


@pytest.mark.parametrize(
    ("faults", "kind", "says"),
    [
        ([Fault("status", "hub", 9, 404)], "not_found", "it has no such file"),
        ([Fault("status", "hub", 9, 403)], "not_allowed", "a token for 127.0.0.1"),
        ([Fault("status", "hub", 9, 429, headers={"Retry-After": "86400"})], "rate_limited", "asks to wait 24 h"),
        ([Fault("status", "cdn", 99, 403)], "link_refused", "403 to its signed link"),
        ([Fault("status", "cdn", 99, 500)], "server", "answers 500"),
        ([Fault("html", "hub", 9)], "html", "sends a page (text/html) instead of the file"),
        ([Fault("html", "cdn", 9)], "html", "sends a page (text/html) instead of the file"),
        ([Fault("reset", "hub", 99)], "network", "127.0.0.1"),
        ([Fault("lie_size", "hub", 9)], "wrong_size", "states 307207 bytes, and 127.0.0.2"),
        ([Fault("lie_hash", "hub", 9)], "wrong_hash", "nothing was fetched"),
        ([Fault("longer", "cdn", 99)], "wrong_size", "bytes"),
        ([Fault("packed", "cdn", 99)], "content", "sends the file packed (gzip)"),
        ([Fault("corrupt", "cdn", 99, at=0.3)], "wrong_hash", "expected is"),
    ],
)
def test_each_trouble_is_named(house: House, faults: list[Fault], kind: str, says: str) -> None:
    good, bad = house.blob("good.safetensors"), house.blob("bad.safetensors")
    for fault in faults:
        fault.name = bad.name
    house.origin.fail(*faults)
    outcome = house.run([house.want(bad), house.want(good)], tries=3)
    assert house.right(good), "the others are fetched all the same"
    assert not house.path(bad).exists()
    (failure,) = outcome.failed
    assert failure["file"] == bad.name
    assert failure["kind"] == kind
    assert says in failure["problem"]
    assert "sig=" not in failure["problem"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "hub", 1, 503),
        Fault("status", "hub", 1, 429, headers={"Retry-After": "0"}),
        Fault("status", "hub", 1, 404),
        Fault("reset", "hub", 2),
        Fault("status", "cdn", 2, 403),
        Fault("status", "cdn", 2, 503),
        Fault("status", "cdn", 2, 416),
        Fault("drop", "cdn", 4),
        Fault("reset", "cdn", 3),
        Fault("corrupt", "cdn", 1),
        Fault("no_ranges", "cdn", 2),
        Fault("shorter", "cdn", 1),
        Fault("lie_size", "hub", 1),
        Fault("stall", "cdn", 2),
    ],
    ids=lambda fault: f"{fault.where}-{fault.kind}-{fault.status if fault.kind == 'status' else ''}",
)
def test_what_passes_is_got_over(house: House, fault: Fault) -> None:
    blob = house.blob("a.safetensors", 3 * MB)
    fault.times, times = fault.times, fault.times
    house.origin.fail(Fault(**vars(fault)))
    outcome = house.run([house.want(blob)], connections=4)
    assert outcome.failed == []
    assert house.right(blob)
    assert house.leftovers() == []
    assert house.origin.faults[0].times < times, "the fault took place"


def utf8(text: str) -> str:
    """Write UTF-8 as it looks in a header."""
    return text.encode().decode("latin-1")


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({"Location": utf8("/n\u00e4her/m.safetensors")}, 302, "it has no such file"),
        ({"Location": "https://[::1/x"}, 302, "redirects to an address that cannot be used"),
        ({"Location": utf8("http://b\u00fccher..example/x")}, 302, "redirects to an address that cannot be used"),
        ({"Location": "  "}, 307, "does not say where to"),
        ({"Retry-After": "\u00b2"}, 429, "limits the rate"),
        ({"Retry-After": "9" * 400}, 503, "answers 503"),
        ({"X-Error-Message": utf8("\u00e4\x1b[31m")}, 500, "answers 500"),
    ],
)
def test_odd_answers_end_with_a_message(house: House, headers: dict[str, str], status: int, says: str) -> None:
    good, bad = house.blob("good.safetensors"), house.blob("bad.safetensors")
    house.origin.fail(Fault("status", "hub", 9, status, bad.name, headers=headers))
    outcome = house.run([house.want(bad), house.want(good)], tries=2)
    assert house.right(good)
    assert says in outcome.failed[0]["problem"]


def test_a_name_beyond_ascii_is_fetched(house: House) -> None:
    blob = house.blob("gr\u00f6\u00dfe \u00fc.safetensors")
    given = {"name": blob.name, "folder": "loras", "urls": [f"{house.origin.hub}/own/repo/resolve/0/{blob.name}"]}
    assert house.run([parse_file(given)]).failed == []
    assert house.right(blob)


@pytest.mark.parametrize("error", [RuntimeError("odd"), KeyError("odd"), RecursionError("odd"), UnicodeError("odd")])
@pytest.mark.parametrize("place", ["engine.ask", "engine.sha256", "record.Follower._wait", "stream.Stream._copy"])
def test_whatever_a_thread_raises_is_that_file_s_problem(
    house: House, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    good, bad, there = (house.blob(f"{name}.safetensors") for name in ("good", "bad", "there"))
    house.run([house.want(good)])
    house.path(there).write_bytes(there.data)

    def broken(*_args: object, **_named: object) -> Any:
        raise error

    if place.startswith("stream"):
        house.origin.add(bad, TOKEN)
    monkeypatch.setattr(f"ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.{place}", broken)
    urls = (house.origin.plain_url(bad.name),)
    outcome = house.run(
        [house.want(good), house.want(bad, urls=urls), house.want(there)], tokens=Tokens({house.origin.hub: TOKEN})
    )
    failed = {failure["file"]: failure["problem"] for failure in outcome.failed}
    expected = there if place == "engine.sha256" else bad
    assert f"{type(error).__name__}: " in failed[expected.name]
    assert house.right(good)


def test_a_wrong_hash_is_shown_and_kept_aside_once(house: House) -> None:
    blob = house.blob("a.safetensors")
    house.origin.fail(Fault("corrupt", "cdn", 99))
    outcome = house.run([house.want(blob)])
    rejected = house.path(blob).with_name("a.safetensors.rejected")
    assert rejected.exists()
    assert outcome.set_aside == [str(rejected)]
    assert sha256(rejected) in outcome.failed[0]["problem"]
    assert blob.sha256 in outcome.failed[0]["problem"]
    assert [path.name for path in house.path(blob).parent.iterdir()] == [rejected.name]
    house.origin.faults.clear()
    assert house.run([house.want(blob)]).failed == []


def test_a_link_that_expired_is_asked_for_anew(tmp_path: Path) -> None:
    with Origin(life_s=0.5) as origin:
        house = House(tmp_path, origin)
        blob = house.blob("a.safetensors", 4 * MB)
        origin.fail(*[Fault("slow", "cdn", 3, rate=600_000)])
        outcome = house.run([house.want(blob)], connections=2)
        assert outcome.failed == []
        assert house.right(blob)


@pytest.mark.parametrize(("refusals", "connections"), [(0, 16), (1, 4), (2, 1)])
def test_fewer_connections_after_a_refused_link(house: House, refusals: int, connections: int) -> None:
    blob = house.blob("a.safetensors", 3 * MB)
    house.origin.fail(Fault("status", "cdn", refusals, 403))
    with exclusive(house.state / LOCK) as lock:
        engine = Engine([house.want(blob)], house.settings(connections=16), lock)
        assert engine.run().failed == []
    assert [item.connections for item in engine._items] == [connections]
    assert house.right(blob)


def test_a_host_that_asks_to_wait_is_given_the_time(house: House) -> None:
    blob = house.blob("a.safetensors")
    house.origin.fail(Fault("status", "hub", 1, 429, headers={"Retry-After": "2"}))
    begun = time.monotonic()
    assert house.run([house.want(blob)]).failed == []
    assert time.monotonic() - begun >= 2


def test_a_limit_holds_for_all_transfers_together(house: House) -> None:
    blobs = [house.blob(f"{number}.safetensors", 2 * MB) for number in range(2)]
    begun = time.monotonic()
    assert house.run([house.want(blob) for blob in blobs], limit=MB).failed == []
    assert time.monotonic() - begun > 2


def test_what_is_there_is_verified_once(house: House) -> None:
    blob = house.blob("a.safetensors")
    house.path(blob).parent.mkdir(parents=True)
    house.path(blob).write_bytes(blob.data)
    outcome = house.run([house.want(blob)])
    assert (outcome.changed, status(outcome, blob)["status"]) == (False, "present")
    assert house.origin.seen == [], "its sha256 is known, so no one has to be asked"
    assert Record(house.state).untouched(house.path(blob))


def test_something_else_under_the_name_is_kept_aside(house: House) -> None:
    blob = house.blob("a.safetensors")
    house.path(blob).parent.mkdir(parents=True)
    house.path(blob).write_bytes(b"mine")
    outcome = house.run([house.want(blob)])
    assert house.right(blob)
    assert house.path(blob).with_name("a.safetensors.rejected").read_bytes() == b"mine"
    assert "it is kept as a.safetensors.rejected" in status(outcome, blob)["note"]


def test_bytes_that_rot_are_found_by_a_full_run(house: House) -> None:
    blob = house.blob("a.safetensors")
    house.run([house.want(blob)])
    path = house.path(blob)
    stat = path.stat()
    with path.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"rot")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not house.run([house.want(blob)]).changed, "size, time and inode are the same"
    assert house.run([house.want(blob)], full=True).changed
    assert house.right(blob)


def test_a_touched_file_is_read_again_and_not_fetched(house: House) -> None:
    blob = house.blob("a.safetensors")
    house.run([house.want(blob)])
    os.utime(house.path(blob))
    requests = len(house.origin.seen)
    assert not house.run([house.want(blob)]).changed
    assert len(house.origin.seen) == requests


def test_a_new_sha256_brings_the_new_file(house: House) -> None:
    blob = house.blob("a.safetensors")
    house.run([house.want(blob)])
    new = house.origin.add(Blob("a.safetensors", 400 * KB))
    assert house.run([house.want(new)]).changed
    assert house.right(new)


def test_files_that_nothing_wants_are_listed_and_removed_only_when_asked(house: House) -> None:
    old, new = house.blob("old.safetensors"), house.blob("new.safetensors")
    house.run([house.want(old), house.want(new)])
    mine = house.root / "loras" / "mine.safetensors"
    mine.write_bytes(b"mine")
    listed = house.run([house.want(new)])
    assert [item["path"] for item in listed.unwanted] == [str(house.path(old))]
    assert not listed.changed
    other = house.run([], owner_list="civitai", prune=True)
    assert other.removed == [], "another list's files are not touched"
    pruned = house.run([house.want(new)], prune=True)
    assert pruned.removed == [str(house.path(old))]
    assert not house.path(old).exists()
    assert mine.exists(), "what this did not fetch is not its to remove"
    mine.unlink()


def test_a_failed_run_removes_nothing(house: House) -> None:
    old, new = house.blob("old.safetensors"), house.blob("new.safetensors")
    house.run([house.want(old)])
    house.origin.fail(Fault("status", "hub", 9, 403))
    assert house.run([house.want(new)], prune=True).removed == []
    assert house.path(old).exists()


# Tokens


def test_a_token_stays_with_its_host(house: House) -> None:
    blob = house.blob("gated.safetensors", token=TOKEN)
    outcome = house.run([house.want(blob)])
    assert outcome.failed[0]["kind"] == "not_allowed"
    assert "a token for 127.0.0.1" in outcome.failed[0]["problem"]
    outcome = house.run([house.want(blob)], tokens=Tokens({house.origin.hub: TOKEN}))
    assert house.right(blob)
    assert {seen.authorization for seen in house.origin.seen if seen.server == "cdn"} == {""}
    assert f"Bearer {TOKEN}" in {seen.authorization for seen in house.origin.seen if seen.server == "hub"}
    assert TOKEN not in (house.state / "verified.json").read_text() + (house.state / "progress.json").read_text()


def test_a_token_goes_to_the_host_itself_in_one_plain_stream(house: House) -> None:
    blob = house.blob("gated.safetensors", 2 * MB, token=TOKEN)
    house.origin.fail(Fault("drop", "hub", 2, at=0.6))
    house.origin.faults[0].times = 0
    wanted = house.want(blob, urls=(house.origin.plain_url(blob.name),))
    outcome = house.run([wanted], tokens=Tokens({house.origin.hub: TOKEN}))
    assert outcome.failed == []
    assert house.right(blob)
    assert {seen.agent.partition("/")[0] for seen in house.origin.seen} == {"wanmetal"}


@pytest.mark.parametrize("token", ["", TOKEN], ids=["aria2c", "one plain stream"])
@pytest.mark.parametrize("change", ["bytes", "ranges"])
def test_bytes_that_do_not_belong_together_are_not_put_together(house: House, token: str, change: str) -> None:
    blob = house.blob("a.bin", 2 * MB, token=token)
    wanted = house.want(blob, sha256=None, bytes=None, urls=(house.origin.plain_url(blob.name),))
    settings: dict[str, Any] = {
        "allow_unverified": True,
        "tries": 2,
        "connections": 1,
        "tokens": Tokens({house.origin.hub: token}),
    }
    house.origin.fail(Fault("drop", "hub", 2, at=0.6), Fault("status", "hub", 99, 503))
    assert house.run([wanted], **settings).failed
    assert house.leftovers(), "some of it is kept"
    house.origin.faults.clear()
    if change == "bytes":
        blob = house.origin.add(Blob(blob.name, data=bytes(2 * MB)), token)
        assert house.run([wanted], **settings).failed == []
        assert house.right(blob)
    else:
        house.origin.fail(Fault("elsewhere", "hub", 2))
        assert house.run([wanted], **settings).failed == []
        assert house.right(blob)


def test_a_host_that_begins_anew_each_time_is_given_up(house: House) -> None:
    blob = house.blob("a.safetensors", 2 * MB, token=TOKEN)
    for _ in range(40):  # asked, broken off, asked, elsewhere
        house.origin.fail(Fault("silent", "hub"), Fault("drop", "hub", at=0.6), Fault("silent", "hub"))
        house.origin.fail(Fault("elsewhere", "hub"))
    wanted = house.want(blob, urls=(house.origin.plain_url(blob.name),))
    outcome = house.run([wanted], tries=3, tokens=Tokens({house.origin.hub: TOKEN}))
    assert "another part of the file" in outcome.failed[0]["problem"]


def test_a_wrong_token_is_not_repeated(house: House) -> None:
    blob = house.blob("gated.safetensors", token=TOKEN)
    wrong = "hf_some_other_token"
    house.origin.fail(Fault("status", "hub", 9, 403, body=f'{{"error": "bad token {wrong}"}}', headers={}))
    outcome = house.run([house.want(blob)], tokens=Tokens({house.origin.hub: wrong}))
    assert "does not open it" in outcome.failed[0]["problem"]
    assert wrong not in json.dumps(outcome.failed)


def test_no_argument_list_shows_a_secret(house: House) -> None:
    blob = house.blob("gated.safetensors", 3 * MB, token=TOKEN)
    house.origin.fail(Fault("slow", "cdn", 9, rate=1_000_000))
    shown: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if "aria2c" in text:
                        shown.append(text + (entry.parent / "environ").read_bytes().decode(errors="replace"))
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    house.run([house.want(blob)], tokens=Tokens({house.origin.hub: TOKEN}), connections=2)
    stop.set()
    watcher.join()
    assert shown
    assert not [text for text in shown if TOKEN in text or "rpc-secret" in text]


# Sources


def test_several_sources_are_used_together(tmp_path: Path) -> None:
    with Origin() as first, Origin(bind="127.0.0.3", cdn_bind="127.0.0.4") as second:
        house = House(tmp_path, first)
        blob = house.blob("a.safetensors", 16 * MB)
        second.add(blob)
        for origin in (first, second):
            origin.fail(Fault("slow", "cdn", 1000, rate=4_000_000))
        wanted = house.want(blob, urls=(first.hub_url(blob.name), second.hub_url(blob.name)))
        assert house.run([wanted], connections=4).failed == []
        assert house.right(blob)
        assert min(first.sent(), second.sent()) > 2 * MB


def test_one_source_that_is_down_is_no_trouble(tmp_path: Path) -> None:
    with Origin() as origin:
        house = House(tmp_path, origin)
        blob = house.blob("a.safetensors")
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        assert house.run([house.want(blob, urls=(dead, origin.hub_url(blob.name)))]).failed == []


def test_peers_serve_and_the_origin_is_the_last_source(tmp_path: Path) -> None:
    with Origin() as origin, Origin(bind="127.0.0.3", cdn_bind="127.0.0.4") as peer:
        house = House(tmp_path, origin)
        has, lacks = house.blob("has.safetensors", 2 * MB), house.blob("lacks.safetensors", MB)
        unknown = house.blob("unknown.safetensors", MB)
        peer.add(has)
        peer.add(unknown)
        outcome = house.run(
            [house.want(has), house.want(lacks), house.want(unknown, sha256=None, bytes=None)],
            peers=(f"{peer.hub}/plain",),
        )
        assert outcome.failed == []
        assert origin.sent(has.name) == 0
        assert origin.sent(lacks.name) >= lacks.size
        assert origin.sent(unknown.name) <= 1, "the origin states, the peer serves"


def test_a_peer_with_wrong_bytes_does_no_harm(tmp_path: Path) -> None:
    with Origin() as origin, Origin(bind="127.0.0.3", cdn_bind="127.0.0.4") as peer:
        house = House(tmp_path, origin)
        blob = house.blob("a.safetensors", 2 * MB)
        bad = Blob("a.safetensors", data=bytes(2 * MB))
        peer.add(bad)
        assert house.run([house.want(blob)], peers=(f"{peer.hub}/plain",)).failed == []
        assert house.right(blob)


def test_a_mirror_may_be_a_folder(house: House, tmp_path: Path) -> None:
    blob = house.blob("a.safetensors")
    mirror = tmp_path / "mirror folder"
    mirror.mkdir()
    (mirror / blob.name).write_bytes(blob.data)
    wanted = house.want(blob, urls=(f"file://{mirror}/{blob.name}".replace(" ", "%20"),))
    assert house.run([wanted]).failed == []
    assert house.right(blob)
    missing = house.run([house.want(house.blob("b.safetensors"), urls=(f"file://{mirror}/none",))])
    assert missing.failed[0]["kind"] == "not_found"


# Interruptions


def partial_bytes(house: House) -> int:
    return sum(plan.allocated(path) for path in house.root.rglob(".*.part"))


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("killed", ["program", "aria2c", "terminated"])
def test_after_a_kill_little_is_fetched_again(house: House, killed: str) -> None:
    blob = house.blob("a.safetensors", 16 * MB)
    house.origin.fail(Fault("slow", "cdn", 10_000, rate=2_000_000))
    process = start(house, [house.want(blob)], connections=2)
    wait_for(lambda: partial_bytes(house) > 12 * MB)
    (child,) = children(house)
    if killed == "aria2c":
        os.kill(child, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL if killed == "program" else signal.SIGTERM)
        process.wait(20)
        assert not house.path(blob).exists()
        process = start(house, [house.want(blob)], connections=2)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output
    assert house.right(blob)
    assert house.leftovers() == []
    # A second of traffic, a piece of each connection, and what was on the way.
    again = house.origin.sent(blob.name) - blob.size
    assert again < 2 * 2_000_000 + 2 * MB + MB, f"{again} bytes were fetched again"
    print(f"{killed}: {again} bytes were fetched again")


def test_aria2c_does_not_outlive_the_program_and_keeps_the_lock_until_it_ends(house: House) -> None:
    blob = house.blob("a.safetensors", 8 * MB)
    house.origin.fail(Fault("slow", "cdn", 10_000, rate=500_000))
    process = start(house, [house.want(blob)])
    wait_for(lambda: partial_bytes(house) > MB)
    (child,) = children(house)
    process.kill()
    process.wait()
    if Path(f"/proc/{child}").exists():
        with pytest.raises(BusyError), exclusive(house.state / LOCK):
            pass
    wait_for(lambda: not Path(f"/proc/{child}/exe").exists())
    with exclusive(house.state / LOCK, 5):
        pass


def test_the_second_of_two_runs_waits(house: House) -> None:
    blobs = [house.blob(f"{n}.safetensors", 3 * MB) for n in range(3)]
    house.origin.fail(Fault("slow", "cdn", 10_000, rate=1_500_000))
    first = start(house, [house.want(blob) for blob in blobs])
    wait_for(lambda: partial_bytes(house) > 0)
    with pytest.raises(BusyError, match=f"process {first.pid}, since"), exclusive(house.state / LOCK):
        pass
    second = start(house, [house.want(blob) for blob in blobs])
    assert first.wait(60) == 0
    assert second.wait(60) == 0
    assert all(house.right(blob) for blob in blobs)
    assert house.origin.sent() < 1.6 * sum(blob.size for blob in blobs), "the second run fetched nothing"


def test_a_part_of_other_bytes_is_not_continued(house: House) -> None:
    blob = house.blob("a.safetensors", MB)
    part = house.path(blob).with_name(f".a.safetensors.{blob.sha256[:8]}.part")
    part.parent.mkdir(parents=True)
    for control in (b"", b"\0\1 nonsense", None):
        part.write_bytes(b"x" * 5000)
        if control is not None:
            part.with_name(part.name + ".aria2").write_bytes(control)
        assert house.run([house.want(blob)]).failed == []
        assert house.right(blob)
        house.path(blob).unlink()


def test_a_complete_part_is_only_verified(house: House) -> None:
    blob = house.blob("a.safetensors", MB)
    part = house.path(blob).with_name(f".a.safetensors.{blob.sha256[:8]}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(blob.data)
    assert house.run([house.want(blob)]).failed == []
    assert house.right(blob)
    assert house.origin.sent() <= 1


# The disk


def test_too_little_room_is_said_before_a_byte_is_fetched(house: House) -> None:
    blob = house.blob("a.safetensors")
    outcome = house.run([house.want(blob)], reserve=1 << 60)
    assert outcome.failed[0]["kind"] == "disk_full"
    assert "307 kB are needed" in outcome.failed[0]["problem"]
    assert house.origin.sent() <= 1


def test_a_disk_that_fills_up_is_named_and_the_part_is_kept(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.fail(f"this test needs root, to mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        with Origin() as origin:
            house = House(small, origin)
            one, other = house.blob("one.safetensors", 6 * MB), house.blob("other.safetensors", 5 * MB)
            assert house.run([house.want(one)]).failed == []
            filler = small / "filler"
            origin.fail(Fault("slow", "cdn", 1000, rate=2_000_000))

            def fill() -> None:
                wait_for(lambda: partial_bytes(house) > MB)
                with filler.open("wb") as stream, contextlib.suppress(OSError):
                    while True:
                        stream.write(bytes(64 * KB))
                        stream.flush()

            filling = threading.Thread(target=fill)
            filling.start()
            outcome = house.run([house.want(one), house.want(other)], connections=2)
            filling.join()
            assert [failure["kind"] for failure in outcome.failed] == ["disk_full"]
            assert "the disk is" in outcome.failed[0]["problem"]
            assert house.right(one)
            assert not house.path(other).exists()
            filler.unlink()
            assert house.run([house.want(one), house.want(other)]).failed == []
            assert house.right(other)
    finally:
        subprocess.run(["umount", str(small)], check=True)


# CivitAI


def lora(house: House, name: str, data: bytes, **more: Any) -> Blob:
    blob = house.origin.add(Blob(name, data=data))
    house.origin.publish(7, blob, **more)
    return blob


def test_a_civitai_version_becomes_a_file(house: House) -> None:
    blob = lora(house, "style.safetensors", os.urandom(200 * KB))
    wanted = [house.want(blob, id="civitai-7", name="", folder="", urls=(), bytes=None, sha256=None, civitai=7)]
    outcome = house.run(wanted, civitai_api=house.origin.hub)
    assert outcome.failed == []
    assert house.right(blob)
    assert outcome.files[0]["proof"] == "catalogue"
    requests = len(house.origin.seen)
    assert not house.run(wanted, civitai_api=house.origin.hub).changed
    assert len(house.origin.seen) == requests, "a version is known by its id"


def test_civitai_asks_for_a_token(house: House) -> None:
    blob = lora(house, "style.safetensors", os.urandom(KB), needs_token=True)
    wanted = [house.want(blob, id="civitai-7", name="", folder="", urls=(), bytes=None, sha256=None, civitai=7)]
    outcome = house.run(wanted, civitai_api=house.origin.hub)
    assert outcome.failed[0]["kind"] == "not_allowed"
    assert "requires you to be logged in" in outcome.failed[0]["problem"]
    tokens = Tokens({house.origin.hub: TOKEN})
    assert house.run(wanted, civitai_api=house.origin.hub, tokens=tokens).failed == []
    assert {seen.authorization for seen in house.origin.seen if seen.server == "cdn"} == {""}


def zipped(members: dict[str, bytes]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        for name, data in members.items():
            out.writestr(name, data)
    return packed.getvalue()


def test_a_zip_file_is_looked_into(house: House) -> None:
    inside = os.urandom(50 * KB)
    blob = lora(house, "pack.zip", zipped({"a/style.safetensors": inside, "a/readme.txt": b"hi", "../evil.pt": b"x"}))
    wanted = [house.want(blob, id="civitai-7", name="", folder="", urls=(), bytes=None, sha256=None, civitai=7)]
    outcome = house.run(wanted, civitai_api=house.origin.hub)
    assert outcome.failed == []
    assert sorted(path.name for path in house.root.rglob("*") if path.is_file()) == ["style.safetensors"]
    assert (house.root / "loras/style.safetensors").read_bytes() == inside
    assert outcome.files[0]["note"] == "pack.zip held style.safetensors; left out: a/readme.txt, ../evil.pt"
    assert not house.run(wanted, civitai_api=house.origin.hub).changed
    (house.root / "loras/style.safetensors").unlink()
    assert house.run(wanted, civitai_api=house.origin.hub).changed


def crooked(change: str) -> bytes:
    """Return a zip file that cannot be unpacked."""
    packed = BytesIO()
    kind = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.get(change, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(packed, "w", kind) as out:
        out.writestr("good.safetensors", bytes(1000))
        out.writestr("style.safetensors", bytes(range(256)) * 400)
    data = bytearray(packed.getvalue())
    member, listed = data.rfind(b"PK\3\4"), data.rfind(b"PK\1\2")
    if change == "encrypted":
        data[member + 6] |= 1
        data[listed + 8] |= 1
    elif change == "unknown":
        data[member + 8] = data[listed + 10] = 98
    elif change == "cut":
        del data[-40:]
    elif change == "elsewhere":
        data[data.rfind(b"PK\5\6") + 18] += 1
    else:
        data[member + 60 : member + 80] = b"\xff" * 20
    return bytes(data)


@pytest.mark.parametrize("change", ["encrypted", "unknown", "deflated", "bzip2", "lzma", "cut", "elsewhere"])
def test_a_zip_file_that_cannot_be_unpacked_is_its_own_failure(house: House, change: str) -> None:
    blob = lora(house, "pack.zip", crooked(change))
    other = house.blob("other.safetensors")
    wanted = [
        house.want(blob, id="civitai-7", name="", folder="", urls=(), bytes=None, sha256=None, civitai=7),
        house.want(other),
    ]
    outcome = house.run(wanted, civitai_api=house.origin.hub)
    (failure,) = outcome.failed
    assert failure["kind"] == "content"
    assert "zip" in failure["problem"]
    assert [path.name for path in house.root.rglob("*") if path.is_file() and path.suffix == ".safetensors"] == [
        other.name
    ], "no member gets its name alone"
    fetched = house.origin.sent(blob.name)
    assert not house.run(wanted, civitai_api=house.origin.hub).changed
    assert house.origin.sent(blob.name) <= fetched + 1, "what came is not fetched again"


# Names


def version(house: House, number: int, *names: str) -> list[Blob]:
    """Publish a version whose files have bytes of their own, whatever they are called."""
    blobs = [house.origin.add(Blob(f"v{number}-{index}", 50 * KB)) for index, _name in enumerate(names, 2)]
    files = [
        {"id": index, "name": name, "primary": index == 2, "hashes": {"SHA256": blob.sha256}}
        for index, (name, blob) in enumerate(zip(names, blobs, strict=True), 2)
    ]
    house.origin.versions[number] = Version(number, files)
    return blobs


def test_two_models_of_one_name_are_refused_before_a_byte(house: House) -> None:
    version(house, 1, "rain.safetensors", "rain.safetensors")
    version(house, 2, "rain.safetensors")
    hub, free = house.blob("rain.safetensors"), house.blob("free.safetensors")
    one = parse_file({"id": "one", "civitai": 1})
    for rivals in (
        [one, parse_file({"id": "two", "civitai": 2})],
        [one, parse_file({"id": "two", "civitai": 1, "file_id": 3})],
        [one, house.want(hub, id="two")],
    ):
        for _ in range(2):
            outcome = house.run([*rivals, house.want(free)], civitai_api=house.origin.hub, parallel=1)
            assert [failure["kind"] for failure in outcome.failed] == ["same_name"] * 2
            for failure in outcome.failed:
                assert all(part in failure["problem"] for part in ("one", "two", "loras/rain.safetensors"))
            assert house.right(free)
            assert house.leftovers() == []
            assert not house.path(hub).exists()
    named = [one, parse_file({"id": "two", "civitai": 2, "name": "rain-2.safetensors"})]
    assert house.run(named, civitai_api=house.origin.hub).failed == []
    asked = len(house.origin.seen)
    assert not house.run(named, civitai_api=house.origin.hub).changed
    assert len(house.origin.seen) == asked


def test_a_model_does_not_take_the_name_of_one_that_is_there(house: House) -> None:
    (first,), _ = version(house, 1, "rain.safetensors"), version(house, 2, "rain.safetensors")
    one, two = parse_file({"civitai": 1}), parse_file({"civitai": 2})
    assert house.run([one], civitai_api=house.origin.hub).failed == []
    path = house.root / "loras/rain.safetensors"
    for owner_list, wanted in (("models", [one, two]), ("civitai", [two])):
        outcome = house.run(wanted, civitai_api=house.origin.hub, owner_list=owner_list)
        assert [failure["id"] for failure in outcome.failed] == ["civitai-2"]
        assert "civitai-1" in outcome.failed[0]["problem"]
        assert (outcome.changed, sha256(path)) == (False, first.sha256)


def test_a_zip_file_does_not_take_a_name(house: House) -> None:
    pack = lora(house, "pack.zip", zipped({"style.safetensors": b"one"}))
    style = house.blob("style.safetensors")
    packed = house.want(pack, id="pack", name="", folder="", urls=(), bytes=None, sha256=None, civitai=7)
    outcome = house.run([packed, house.want(style)], civitai_api=house.origin.hub)
    assert [(failure["id"], failure["kind"]) for failure in outcome.failed] == [("pack", "same_name")]
    assert house.right(style)
    house.path(style).unlink()
    mine = house.path(style)
    mine.write_bytes(b"mine")
    assert house.run([packed], civitai_api=house.origin.hub).set_aside == [f"{mine}.rejected"]
    assert (mine.read_bytes(), Path(f"{mine}.rejected").read_bytes()) == (b"one", b"mine")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_a_zip_file_says_of_itself_is_true_and_can_be_shown(tmp_path: Path, house: House) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for size in (1, 1000):
            packed.writestr("../STYLE.safetensors", bytes(size))
        for number in range(1000):
            packed.writestr(f"{number}\x1b[31m\n.txt", "")
    (tmp_path / "pack.zip").write_bytes(buffer.getvalue())
    assert content.look(tmp_path / "pack.zip").bytes == 1000
    lora(house, "pack.zip", buffer.getvalue())
    outcome = house.run([parse_file({"civitai": 7})], civitai_api=house.origin.hub)
    assert (house.root / "loras/STYLE.safetensors").stat().st_size == 1000
    note = outcome.files[0]["note"]
    assert (note.isprintable(), len(note) < 500) == (True, True)
    assert "and 995 more" in note


def test_what_a_host_says_can_be_shown(house: House) -> None:
    house.origin.versions[1] = Version(1, [{"id": 2, "name": "a.safetensors"}], "\ud800\x1b[31m" + "x" * 5000)
    (failure,) = house.run([parse_file({"civitai": 1})], civitai_api=house.origin.hub).failed
    assert failure["problem"].isprintable()
    assert len(failure["problem"]) < 1000


def test_the_id_of_a_model_is_not_that_of_a_version(house: House) -> None:
    house.origin.models[4] = [70, 71]
    outcome = house.run([parse_file({"civitai": 4}), parse_file({"civitai": 5})], civitai_api=house.origin.hub, tries=1)
    problems = {failure["id"]: failure["problem"] for failure in outcome.failed}
    assert "4 is the id of a model of CivitAI, not of one of its versions: 70 (v70), 71 (v71)" in problems["civitai-4"]
    assert "No version with that id" in problems["civitai-5"]


# Content


TENSOR = {"dtype": "F16", "shape": [5, 10], "data_offsets": [0, 100]}


def safetensors(header: object, body: int, length: int | None = None) -> bytes:
    """Write a safetensors file, perhaps a wrong one."""
    head = json.dumps(header).encode()
    return (len(head) if length is None else length).to_bytes(8, "little") + head + bytes(body)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (
            "a.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
            "pointer of Git LFS",
        ),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "pointer of Git LFS"),
        ("a.pth", b"\xef\xbb\xbf\n<!DOCTYPE html><title>Sign in</title>", "a page"),
        ("a.bin", b"<html><body>no</body></html>", "a page"),
        ("a.ckpt", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a page"),
        ("a.gguf", b'{"error": "Unauthorized"}', "a message"),
        ("a.gguf", bytes(100), "no GGUF"),
        ("a.safetensors", bytes(9), "speaks of|cannot be read"),
        ("a.safetensors", b"abc", "cannot hold its header"),
        ("a.safetensors", safetensors({}, 0, 1 << 60), "cannot hold its header"),
        ("a.safetensors", safetensors([1], 0), "cannot be read"),
        ("a.safetensors", safetensors({"w": {"data_offsets": "none"}}, 0), "cannot be read"),
        ("a.safetensors", safetensors({"w": TENSOR}, 60), "speaks of"),
        ("a.safetensors", safetensors({"__metadata__": {"a": "b"}}, 0), "names no tensor"),
        ("a.sft", safetensors({"w": {**TENSOR, "shape": [999]}}, 100), "cannot be"),
        ("a.safetensors", safetensors({"v": TENSOR, "w": {**TENSOR, "data_offsets": [50, 150]}}, 150), "cannot be"),
        ("a.safetensors", safetensors({"v": TENSOR, "w": {**TENSOR, "data_offsets": [150, 250]}}, 250), "cannot be"),
        ("a.safetensors", safetensors({"w": {**TENSOR, "data_offsets": [100, 0]}}, 0), "cannot be"),
        ("a.safetensors", safetensors({"w": {**TENSOR, "data_offsets": [0, 100.0]}}, 100), "cannot be read"),
        ("a.bin", b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "pointer of Git LFS"),
        ("a.bin", "<!DOCTYPE html><p>no</p>".encode("utf-16"), "a page"),
        ("a.bin", b"<table><tr><td>no", "a page"),
        ("a.pth", b"Entry not found", "no PyTorch"),
        ("a.safetensors", safetensors({"w": TENSOR}, 160), "speaks of"),
    ],
)
def test_what_is_no_model_gets_no_name(house: House, name: str, data: bytes, says: str) -> None:
    blob = house.origin.add(Blob(name, data=data))
    wanted = house.want(blob, sha256=None, bytes=None, urls=(house.origin.moved_url(name),))
    outcome = house.run([wanted], allow_unverified=True)
    assert outcome.failed[0]["kind"] == "content"
    assert re.search(says, outcome.failed[0]["problem"])
    assert not house.path(blob).exists()
    assert house.path(blob).with_name(f"{name}.rejected").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.safetensors", safetensors({"__metadata__": {"a": "b"}, "w": TENSOR}, 100)),
        ("config.json", b'{"model_type": "wan"}'),
        ("a.pt", b"\x80\x02pickle"),
        ("a.txt", b"<html> is a word"),
    ],
)
def test_what_may_be_a_model_gets_its_name(house: House, name: str, data: bytes) -> None:
    blob = house.origin.add(Blob(name, data=data))
    wanted = house.want(blob, sha256=None, bytes=None, urls=(house.origin.moved_url(name),))
    assert house.run([wanted], allow_unverified=True).failed == []
    assert house.right(blob)
    house.path(blob).write_bytes(bytes(len(data)))


def test_a_pointer_is_refused_though_its_hash_is_known(house: House) -> None:
    blob = house.origin.add(Blob("a.safetensors", data=b"version https://git-lfs.github.com/spec/v1\noid x\n"))
    assert "pointer of Git LFS" in house.run([house.want(blob)]).failed[0]["problem"]
    house.path(blob).write_bytes(blob.data)
    outcome = house.run([house.want(blob)])
    assert "pointer of Git LFS" in outcome.failed[0]["problem"]
    assert not house.path(blob).exists()


@pytest.mark.parametrize(
    ("where", "body", "says"),
    [
        (
            "cdn",
            "<Error><Code>InvalidRange</Code><Message>The range is &lt;odd&gt;</Message></Error>",
            "The range is <odd>",
        ),
        (
            "cdn",
            "Auth failed: see https://cdn.example/x?sig=secret for more",
            "Auth failed: see https://cdn.example/x?...",
        ),
        ("cdn", "<html><head><title>400 Bad Request</title></head></html>", "400 Bad Request"),
        ("hub", '{"error": {"message": "no such thing"}}', "no such thing"),
        ("hub", "[" * 3000, "answers 400"),
    ],
)
def test_what_a_host_says_is_shown(house: House, where: str, body: str, says: str) -> None:
    blob = house.blob("a.safetensors")
    house.origin.fail(Fault("status", where, 99, 400, body=body))
    (failure,) = house.run([house.want(blob)], tries=1).failed
    assert "answers 400" in failure["problem"]
    assert says in failure["problem"]
    assert "secret" not in failure["problem"]


def test_the_page_of_a_file_is_told_from_a_login(house: House) -> None:
    blob = house.blob("a.safetensors")
    house.origin.fail(Fault("html", "hub", 9))
    wanted = house.want(blob, urls=(house.origin.plain_url("blob/main/a.safetensors").replace("%2F", "/"),))
    assert "/resolve/ in place of /blob/" in house.run([wanted]).failed[0]["problem"]


def test_a_zip_file_without_a_safe_model_says_what_it_holds(house: House) -> None:
    blob = lora(house, "pack.zip", zipped({"style.pt": b"pickle"}))
    wanted = [house.want(blob, id="civitai-7", name="", folder="", urls=(), bytes=None, sha256=None, civitai=7)]
    outcome = house.run(wanted, civitai_api=house.origin.hub)
    assert "holds no .safetensors file, only style.pt" in outcome.failed[0]["problem"]


# Cost


def test_an_unchanged_run_of_a_hundred_files_reads_metadata_only(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = [house.blob(f"{n:03}.safetensors", 1000) for n in range(100)]
    wanted = [house.want(blob) for blob in blobs]
    assert house.run(wanted).failed == []
    opened: list[str] = []
    real = io.open

    def watched(file: Any, *given: Any, **named: Any) -> Any:
        opened.append(str(file))
        return real(file, *given, **named)

    monkeypatch.setattr(io, "open", watched)
    monkeypatch.setattr("builtins.open", watched)
    assert not house.run(wanted).changed
    assert [path for path in opened if path.endswith(".safetensors")] == []
    (house.root / "loras/000.safetensors").touch()
    assert not house.run(wanted).changed
    assert "000.safetensors" in str(opened)
