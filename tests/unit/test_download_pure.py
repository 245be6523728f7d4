"""The parts of the downloads that only think."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.action.aria2_download import ActionModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import (
    aria2,
    background,
    civitai,
    errors,
    plan,
    progress,
    record,
    request,
    sources,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import Problem
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.record import Record
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Tokens, Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.sources import Source
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import units

SHA = "ab" * 32
URL = "https://host.example/x"
GOOD = {"id": "a", "name": "a.safetensors", "folder": "loras", "urls": [URL]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": ""}, "file a: name is missing"),
        ({"name": "../a"}, "name must be a plain file name"),
        ({"name": ".a"}, "name must be a plain file name"),
        ({"name": "a/b"}, "name must be a plain file name"),
        ({"name": "a.rejected"}, "name must be a plain file name"),
        ({"name": "ä" * 116}, "name must be a plain file name of 230 bytes at most"),
        ({"name": 12}, "name must be a text, in quotes where it is a number, found 12"),
        ({"folder": ["loras"]}, "folder must be a text"),
        ({"urls": {"https://a.example/x": 1}}, "urls must be an address, or a list of them"),
        ({"name": "a\nb"}, "name must be a plain file name"),
        ({"folder": ""}, "folder must be a path below the models folder"),
        ({"folder": "/etc"}, "folder must be a path below the models folder"),
        ({"folder": "loras/../.."}, "folder must be a path below the models folder"),
        ({"urls": []}, "urls is missing"),
        ({"urls": ["ftp://host/x"]}, "urls must begin with https://"),
        ({"urls": ["https://me:secret@host/x"]}, "holds a user name or a password (not shown)"),
        ({"urls": ["https://me:secret/with-a-slash@host/x"]}, "holds a user name or a password (not shown)"),
        ({"urls": ["https://host/x?token=secret"]}, "holds a credential in its query (token=, not shown)"),
        ({"urls": ["https://host/x?a=b&X-Amz-Signature=secret"]}, "(X-Amz-Signature=, not shown)"),
        ({"urls": ["https://host/x?accessToken=secret"]}, "as the token of host"),
        ({"urls": ["https://[::1/x"]}, "its host or port is malformed"),
        ({"urls": ["https://host:port/x"]}, "its host or port is malformed"),
        ({"urls": ["https://a..b/x"]}, "its host is malformed"),
        ({"urls": ["https://host/x\ny"]}, "not printable"),
        ({"urls": ["https://host/"]}, "names a host and no file"),
        ({"urls": ["https://host/x#y"]}, "write %23"),
        ({"urls": ["https://huggingface.co/me/mine/blob/main/x"]}, "has /resolve/ in place of /blob/"),
        ({"urls": ["https://huggingface.co/datasets/me/mine/blob/main/x"]}, "has /resolve/ in place of /blob/"),
        ({"urls": ["https://github.com/me/mine/blob/main/x"]}, "has /raw/ in place of /blob/"),
        ({"urls": ["https://civitai.com/models/42/x?modelVersionId=7"]}, "in place of the URL write civitai: 7"),
        ({"sha256": "abc"}, "sha256 must have 64 hexadecimal digits"),
        ({"bytes": 0}, "bytes must be a whole number above 0"),
        ({"bytes": "12"}, "bytes must be a whole number above 0"),
        ({"civitai": True}, "civitai must be a whole number above 0"),
    ],
)
def test_wrong_entries_name_the_field(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        request.parse_file({**GOOD, **change})
    assert "secret" not in str(caught.value)


def test_entries() -> None:
    wanted = request.parse_file({**GOOD, "sha256": SHA.upper(), "about_bytes": 7, "folder": "controlnet/SDXL"})
    assert (wanted.path, wanted.sha256, wanted.guess) == ("controlnet/SDXL/a.safetensors", SHA, 7)
    assert request.parse_file({"civitai": 12}).id == "civitai-12"


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("https://host/a b.bin", "https://host/a%20b.bin"),
        ("https://host/gr\u00f6\u00dfe.bin?name=\u00fc", "https://host/gr%C3%B6%C3%9Fe.bin?name=%C3%BC"),
        ("https://m\u00fcller.example/x", "https://xn--mller-kva.example/x"),
        ("HTTPS://Host:443/X%20y", "https://host/X%20y"),
        ("http://[::1]:8/x\n", "http://[::1]:8/x"),
        ("file:///srv/a b", "file:///srv/a%20b"),
    ],
)
def test_addresses_are_written_so_that_http_carries_them(given: str, asked: str) -> None:
    assert request.parse_file({**GOOD, "urls": [given]}).urls == (asked,)


def test_a_place_is_claimed_once() -> None:
    with pytest.raises(ValueError, match=r"files a and b both claim loras/a\.safetensors"):
        request.parse_files([GOOD, {**GOOD, "id": "b"}])


@pytest.mark.parametrize(
    ("status", "first_hop", "had_token", "code", "kind", "says", "lasting"),
    [
        (404, True, False, "EntryNotFound", "not_found", "it has no such file", False),
        (410, True, False, "", "not_found", "answers 410", True),
        (404, True, False, "RevisionNotFound", "not_found", "it has no such revision", False),
        (401, True, False, "GatedRepo", "not_allowed", "a token for host is missing", True),
        (401, True, False, "RepoNotFound", "not_allowed", "a repository that does not exist", True),
        (403, True, True, "", "not_allowed", "the token for host does not open it", True),
        (403, False, False, "", "link_refused", "its signed link", False),
        (416, False, False, "", "server", "the file there is shorter", False),
        (429, True, False, "", "rate_limited", "limits the rate", False),
        (503, False, False, "", "server", "answers 503", False),
    ],
)
def test_http_statuses_are_told_apart(
    status: int, first_hop: bool, had_token: bool, code: str, kind: str, says: str, lasting: bool
) -> None:
    problem = errors.from_status(status, "host", first_hop=first_hop, had_token=had_token, code=code)
    assert (problem.kind, problem.lasting) == (kind, lasting)
    assert says in str(problem)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (urllib.error.URLError(socket.gaierror(-2, "Name or service not known")), "dns", "cannot be resolved"),
        (
            urllib.error.URLError(ssl.SSLCertVerificationError(1, "self-signed")),
            "tls",
            "the certificate of host is not trusted",
        ),
        (ssl.SSLError(1, "[SSL] handshake"), "tls", "TLS with host failed"),
        (TimeoutError("timed out"), "network", "does not answer in time"),
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), "network", "Connection refused"),
        (ValueError("bad line"), "network", "does not answer as HTTP"),
    ],
)
def test_failed_requests_are_told_apart(error: BaseException, kind: str, says: str) -> None:
    problem = errors.from_exception(error, "host")
    assert problem.kind == kind
    assert says in str(problem)


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (22, "The response status is not successful. status=403", "link_refused"),
        (22, "The response status is not successful. status=500", "server"),
        (3, "Resource not found", "not_found"),
        (9, "", "disk_full"),
        (17, "Failed to write: No space left on device", "disk_full"),
        (16, "Failed to open the file /x, cause: Permission denied", "local"),
        (1, "SSL/TLS handshake failure: certificate has expired", "tls"),
        (19, "", "dns"),
        (13, "", "restart"),
        (2, "Timeout.", "network"),
        (77, "never seen", "network"),
    ],
)
def test_exit_codes_of_aria2c_are_told_apart(code: int, said: str, kind: str) -> None:
    assert errors.from_aria2(code, said, "host").kind == kind


@pytest.mark.parametrize(("wait", "attempt", "expected"), [(None, 0, 2), (None, 3, 16), (None, 50, 128), (7.0, 3, 7.0)])
def test_the_next_attempt_waits(wait: float | None, attempt: int, expected: float) -> None:
    assert errors.delay_s(Problem("server", "x", wait_s=wait), attempt, 2) == expected


def test_a_full_disk_is_known_by_its_errno() -> None:
    assert errors.from_os(OSError(errno.ENOSPC, "No space left on device")).kind == "disk_full"
    assert errors.from_os(OSError(errno.EDQUOT, "Quota exceeded")).kind == "disk_full"
    assert errors.from_os(PermissionError(errno.EACCES, "Permission denied", "/x")).kind == "local"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Linked-ETag": f'"{SHA}"'}, SHA),
        ({"X-Linked-ETag": f'W/"{SHA.upper()}"'}, SHA),
        ({"X-Linked-ETag": f'"{"ab" * 20}"'}, None),
        ({"ETag": f'"{SHA}"', "X-Xet-Hash": SHA}, None),
        ({}, None),
    ],
)
def test_only_a_real_sha256_is_a_statement(headers: dict[str, str], expected: str | None) -> None:
    assert sources.stated_sha256(headers) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "17"}, 17),
        ({"Retry-After": "Thu, 01 Jan 1970 00:17:00 GMT"}, 20),
        ({"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}, 0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "\u00b2"}, None),
        ({"Retry-After": "9" * 5000}, None),
        ({"Retry-After": "Thu, 01 Jan 99999 00:17:00 GMT"}, None),
        ({"RateLimit": f'"resolvers";r=0;t={"9" * 400}'}, None),
        ({"RateLimit": '"resolvers";r=0;t=140'}, 140),
        ({"RateLimit": '"resolvers";r=12;t=140'}, None),
        ({}, None),
    ],
)
def test_how_long_a_host_asks_to_wait(headers: dict[str, str], expected: float | None) -> None:
    assert sources.wait_s(headers, 1000.0) == expected


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (206, {"Content-Range": "bytes 0-0/1234", "Content-Length": "1"}, 1234),
        (206, {"Content-Range": "bytes 0-0/*"}, None),
        (200, {"Content-Length": "55"}, 55),
        (200, {}, None),
        (200, {"Content-Length": "-5"}, None),
        (200, {"Content-Length": "\u0663"}, None),
        (206, {"Content-Range": f"bytes 0-0/{'9' * 5000}"}, None),
    ],
)
def test_total_size(status: int, headers: dict[str, str], expected: int | None) -> None:
    assert sources.total_size(status, headers) == expected


@pytest.mark.parametrize(
    ("url", "location", "expected"),
    [
        ("https://a/x/y", "/z", "https://a/z"),
        ("https://a/x", "https://b/z?sig=1", "https://b/z?sig=1"),
        ("http://a/x", "http://b/z", "http://b/z"),
        ("https://a/x", "http://127.0.0.1:8/z", "http://127.0.0.1:8/z"),
        ("https://a/x", "/n\u00e4her", "/n%E4her"),
        ("https://a/x", "/n\u00e4her".encode().decode("latin-1"), "/n%C3%A4her"),
        ("https://a/x", "https://b\u00fccher.example/z y#part".encode().decode("latin-1"), ""),
        ("https://a/x/y", "z y", "https://a/x/z%20y"),
    ],
)
def test_redirects(url: str, location: str, expected: str) -> None:
    target = (
        expected if "://" in expected else f"https://a{expected}" if expected else "https://xn--bcher-kva.example/z%20y"
    )
    assert sources.next_hop(url, location) == target


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("http://b/z", "tls"),
        ("file:///etc/passwd", "server"),
        ("ftp://b/z", "server"),
        ("https://[::1/z", "server"),
        ("https://b:99999/z", "server"),
        ("", "server"),
    ],
)
def test_redirects_that_are_refused(location: str, kind: str) -> None:
    with pytest.raises(Problem) as caught:
        sources.next_hop("https://a/x", location)
    assert caught.value.kind == kind


def test_tokens_belong_to_one_host_and_to_https() -> None:
    tokens = Tokens({"a.example": "one", "http://127.0.0.1:8": "two", "b.example": ""})
    assert tokens.of("https://a.example/x?y") == "one"
    assert tokens.of("http://a.example/x") == ""
    assert tokens.of("https://a.example.evil/x") == ""
    assert tokens.of("https://cdn.a.example/x") == ""
    assert tokens.of("http://127.0.0.1:8/x") == "two"
    assert tokens.of("http://127.0.0.1:9/x") == ""
    assert tokens.hide("one and two") == "******** and ********"


@pytest.mark.parametrize("sent", ["hf_abc\n", " hf_abc", "hf_abc\r\n"])
def test_a_line_end_around_a_token_is_not_sent(sent: str) -> None:
    assert Tokens({"A.example:443": sent}).of("https://a.example/x") == "hf_abc"


@pytest.mark.parametrize("sent", ["hf_a\nb", "hf_\u00e4b", "hf a", "hf_\x7fb"])
def test_a_token_that_http_cannot_carry_is_refused(sent: str) -> None:
    with pytest.raises(ValueError, match=r"the token of a\.example \(not shown\)") as caught:
        Tokens({"a.example": sent})
    assert sent not in str(caught.value)
    with pytest.raises(ValueError, match="is no host"):
        Tokens({"https://[::1": "hf_abc"})


VERSION: dict[str, Any] = {"model": {"type": "LORA"}, "files": [{"id": 2, "name": "a.safetensors"}]}


@pytest.mark.parametrize(
    "odd",
    [
        {"hashes": [{"type": "SHA256"}]},
        {"hashes": {"SHA256": ["ab"]}},
        {"hashes": "none"},
        {"sizeKB": float("nan")},
        {"sizeKB": float("inf")},
        {"sizeKB": "12"},
        {"id": "2"},
        {"primary": "yes"},
    ],
)
def test_odd_metadata_of_a_file_is_left_aside(odd: dict[str, Any]) -> None:
    data = {**VERSION, "files": [{**VERSION["files"][0], **odd}]}
    found = civitai.describe(Wanted("c", "", civitai=5), data, request.CIVITAI)
    assert (found.path, found.sha256, found.about_bytes) == ("loras/a.safetensors", None, None)
    assert found.urls == ("https://civitai.com/api/download/models/5?fileId=2",)


@pytest.mark.parametrize(
    "odd",
    [
        {"files": {"id": 2}},
        {"files": "none"},
        {"files": [7, None, {"id": "second"}, {"id": True}, {"id": 2.5}]},
        {"files": [{"id": 2, "name": ["a"]}]},
        {"files": [{"id": 2, "name": "..\\.."}]},
        {"model": ["LORA"]},
        {"model": {"type": 5}, "air": 7},
        {"model": None, "air": "urn:air"},
    ],
)
def test_odd_metadata_of_a_version_is_a_problem(odd: dict[str, Any]) -> None:
    with pytest.raises(Problem):
        civitai.describe(Wanted("c", "", civitai=5), {**VERSION, **odd}, request.CIVITAI)


def test_sources_are_mixed_only_when_they_are_the_same_bytes() -> None:
    known = Wanted("a", "loras", "a", (URL,), sha256=SHA)
    unknown = Wanted("a", "loras", "a", (URL,))
    one, other = Source("https://a/1", 5, SHA), Source("https://b/1", 5, "cd" * 32)
    silent, short, plain = Source("https://c/1", 5), Source("https://d/1", 4), Source("https://e/1", 5, ranges=False)
    single = Source("https://f/1", 5, token="t")  # noqa: S106
    assert sources.together(known, [one, silent, short, plain, single]) == (one, silent)
    assert sources.together(known, [plain, single]) == (plain,)
    assert sources.together(known, [single]) == (single,)
    assert sources.together(unknown, [silent, one, other]) == (one,)
    assert sources.together(unknown, [silent, short]) == (silent,)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (Source("https://a/1", 6), "wrong_size"),
        (Source("https://a/1", None), "wrong_size"),
        (Source("https://a/1", 5, "cd" * 32), "wrong_hash"),
    ],
)
def test_a_host_that_states_something_else_is_not_asked_for_bytes(source: Source, kind: str) -> None:
    with pytest.raises(Problem) as caught:
        sources.agreeing(Wanted("a", "loras", "a", (URL,), bytes=5, sha256=SHA), source, "host")
    assert caught.value.kind == kind
    if kind == "wrong_hash":
        assert SHA in str(caught.value)
        assert "cd" * 32 in str(caught.value)


@pytest.mark.parametrize(
    ("bitfield", "piece", "size", "expected"),
    [
        ("", 4, 100, 0),
        ("00", 4, 30, 0),
        ("80", 4, 30, 4),
        ("c0", 4, 30, 8),
        ("e8", 4, 30, 12),
        ("f8", 4, 30, 20),
        ("ff", 4, 30, 30),
        ("fe", 4, 27, 27),
        ("7f", 4, 30, 0),
    ],
)
def test_the_complete_front_of_a_file(bitfield: str, piece: int, size: int, expected: int) -> None:
    assert aria2.leading_bytes(bitfield, piece, size) == expected


def test_control_files_are_read(tmp_path: Path) -> None:
    control = tmp_path / "x.aria2"
    assert aria2.control_length(control) is None
    control.write_bytes(b"")
    assert aria2.control_length(control) is None
    control.write_bytes(
        struct.pack(">HII", 1, 0, 0) + struct.pack(">IQQI", 1 << 20, 123456789, 0, 1) + b"\x80" + b"\0" * 4
    )
    assert aria2.control_length(control) == 123456789


def test_pieces_grow_with_the_file() -> None:
    assert [aria2.piece_size(size) // aria2.MIB for size in (1, 128 << 20, 200 << 20, 4 << 30, 40 << 30)] == [
        1,
        1,
        2,
        16,
        16,
    ]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (32791377504, "32.8 GB"), (2.5e12, "2.50 TB"), (999_700, "1.0 MB")],
)
def test_bytes_for_people(count: float, expected: str) -> None:
    assert units.size(count) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(5, "5 s"), (720, "12 min"), (11100, "3 h 05 min")])
def test_times_for_people(seconds: float, expected: str) -> None:
    assert units.duration(seconds) == expected


def test_percent_reaches_100_only_at_the_end() -> None:
    assert [progress.percent(*pair) for pair in ((0, 10), (9999, 10000), (10, 10), (0, 0))] == [0, 99, 100, 100]


TOLD = {
    "phase": "fetching",
    "done": 12_300_000_000,
    "total": 28_600_000_000,
    "rate": 412_000_000,
    "files": 6,
    "files_done": 2,
    "failed": 0,
    "resting": 1,
    "verifying": 1,
    "moving": [{"name": "big.safetensors", "done": 1, "bytes": 3}],
}


def test_the_line_of_progress() -> None:
    assert progress.line(TOLD) == (
        " 43 %  12.3 GB of 28.6 GB  412 MB/s  40 s left  2/6 files"
        "  big.safetensors 33 %  verifying 1  1 to be tried again"
    )
    assert len(progress.line(TOLD, width=60)) == 60
    unknown = {**TOLD, "done": 0, "total": 0, "rate": 0, "files": 1, "files_done": 0, "verifying": 0, "moving": []}
    assert progress.line(unknown) == "0 B of unknown size  0/1 files  1 to be tried again"


def test_speed_is_that_of_the_last_seconds() -> None:
    meter = progress.Meter()
    assert meter.rate == 0
    for second in range(60):
        meter.add(float(second), 100 * second if second < 30 else 3000 + 10 * (second - 30))
    assert meter.rate == pytest.approx(10, rel=0.2)


def test_parts_are_tied_to_their_bytes(tmp_path: Path) -> None:
    for name in (
        ".a.bin.abababab.part",
        ".a.bin.abababab.part.aria2",
        ".a.bin.x.abababab.part",
        "a.bin",
        ".a.bin.part",
    ):
        (tmp_path / name).touch()
    assert [part.name for part in plan.parts(tmp_path / "a.bin")] == [".a.bin.abababab.part"]
    assert plan.tag(SHA, 5) == "abababab"
    assert len(plan.tag(None, 5)) == len(plan.tag(None, 1 << 60)) == 8


def test_disks_are_summed_with_the_reserve(tmp_path: Path) -> None:
    found = [
        plan.Found("a", str(tmp_path / "loras/a"), "missing", 100),
        plan.Found("b", str(tmp_path / "loras/b"), "partial", 100, 40),
        plan.Found("c", str(tmp_path / "vae/c"), "verified", 1000, 1000),
        plan.Found("d", str(tmp_path / "vae/d"), "missing", None),
        plan.Found("e", str(tmp_path / "vae/e.zip"), "missing", 10),
    ]
    summary = plan.summary(found, 50, 10.0)
    assert (summary["bytes_total"], summary["bytes_missing"], summary["unknown_sizes"]) == (1210, 170, ["d"])
    (disk,) = plan.disks(found, 50, lambda _path: 229)
    assert (disk["needed"], disk["left"], disk["enough"]) == (180, -1, False)
    assert plan.disks(found, 50, lambda _path: 230)[0]["enough"]
    assert plan.disks(found[2:3], 50, lambda _path: 0)[0]["enough"], "nothing to fetch needs no room"


PROOF = {"id": "a", "owner_list": "models", "size": 1, "mtime_ns": 1, "inode": 1, "sha256": SHA, "by": "host"}


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 1, "files": [',
        "[1]",
        '"text"',
        "[" * 100_000,
        '{"version": 1, "rate": null, "files": [1]}',
        '{"version": 1, "rate": [], "files": {"a": 1}}',
        json.dumps({"version": 1, "rate": None, "files": {"/a": {**PROOF, "id": ["a"]}}}),
        json.dumps({"version": 1, "rate": None, "files": {"/a": {**PROOF, "size": "1"}}}),
        json.dumps({"version": 1, "rate": {"a": 1}, "files": {"/a": PROOF}}),
    ],
)
def test_a_record_that_cannot_be_read_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "verified.json").write_text(text)
    assert Record(tmp_path).proofs == {}


def test_the_record_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    old = tmp_path / "proven.json"
    old.write_text(json.dumps({"version": 1, "rate": 7.0, "files": {"/a": PROOF}}))
    record = Record(tmp_path)
    assert (list(record.proofs), record.rate) == (["/a"], 7.0)
    assert not (tmp_path / "verified.json").exists(), "a plan changes nothing"
    record.adopt()
    assert not old.exists()
    assert Record(tmp_path).proofs == record.proofs
    old.write_text("{}")
    Record(tmp_path).adopt()
    assert Record(tmp_path).proofs == record.proofs, "what is verified now counts, whatever else lies there"


@pytest.mark.parametrize("name", ["verified.json", "progress.json", "job.json"])
@pytest.mark.parametrize("kind", ["pipe", "link to a device", "link to a file", "folder"])
def test_what_lies_in_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    elif kind == "folder":
        (tmp_path / name).mkdir()
    else:
        other = tmp_path / "other"
        other.write_text(json.dumps({"version": 1, "rate": None, "files": {"/a": PROOF}} | {**TOLD, "at": 1}))
        (tmp_path / name).symlink_to("/dev/zero" if "device" in kind else other)
    assert Record(tmp_path).proofs == {}
    assert progress.load(tmp_path) is None
    assert done_by_the_action(tmp_path) is None
    if kind != "link to a file":
        with pytest.raises(OSError, match=r"no regular file|Is a directory"):
            record.sha256(tmp_path / name)
    if kind != "folder":
        monkeypatch.setattr(background, "_systemctl", lambda *_arguments: "inactive")
        asked = request.parse({**ORDER, "state_dir": str(tmp_path)})
        params = dict.fromkeys(background._OPTIONS, "")
        assert background.start("x.service", asked, params)
        assert json.loads((tmp_path / "job.json").read_text())["wait"] > 0
        assert not (tmp_path / "job.json").is_symlink()


def done_by_the_action(folder: Path) -> Any:
    """Look at the progress as the action plugin does on a host."""
    action = ActionModule.__new__(ActionModule)

    def execute(command: str, **_options: object) -> dict[str, str]:
        return {"stdout": subprocess.run(command, shell=True, capture_output=True, text=True, check=False).stdout}  # noqa: S602

    action._low_level_execute_command = execute
    return action._progress({"state_dir": str(folder)})


def test_progress_is_read_by_the_action_as_it_was_saved(tmp_path: Path) -> None:
    progress.save(tmp_path, {**TOLD, "at": 1, "pid": 2})
    assert done_by_the_action(tmp_path) == progress.load(tmp_path) == {**TOLD, "at": 1}


@pytest.mark.parametrize(
    "odd",
    [
        {"done": "many"},
        {"rate": float("nan")},
        {"total": float("inf")},
        {"moving": 5},
        {"moving": [5]},
        {"moving": [{"name": "a"}]},
        {"done": None},
    ],
)
def test_odd_progress_is_none(odd: dict[str, Any]) -> None:
    assert progress.parse(json.dumps({**TOLD, "at": 1, **odd})) is None


def test_odd_names_and_numbers_in_progress_harm_no_terminal() -> None:
    moving = [{"name": "\x1b[31ma\n", "done": 10**400, "bytes": -5}]
    state = progress.parse(json.dumps({**TOLD, "at": 1, "done": -3, "rate": 10**400, "moving": moving}))
    assert state
    assert progress.line(state).isprintable()


ORDER: dict[str, Any] = {
    "files": [GOOD],
    "dest": "/models",
    "state_dir": "/state",
    "list": "models",
    "connections": 8,
    "parallel": 4,
    "limit": "50M",
    "reserve": "",
    "tries": 6,
    "pause": 2.0,
    "prune": False,
    "allow_unverified": False,
    "verify": "state",
    "wait": 0,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"connections": 17}, "connections must lie between 1 and 16"),
        ({"parallel": 0}, "parallel must lie between 1 and 64"),
        ({"limit": "fast"}, "limit must be a number of bytes like 50M"),
        ({"reserve": "-1"}, "reserve must be a number of bytes"),
    ],
)
def test_wrong_orders_name_the_parameter(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        request.parse({**ORDER, **change})


def test_orders() -> None:
    parsed = request.parse(ORDER)
    assert (parsed.settings.limit, parsed.settings.reserve, parsed.read_again) == (50 * 1024 * 1024, 0, False)
