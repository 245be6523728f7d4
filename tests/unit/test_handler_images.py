from __future__ import annotations

import base64
import io
import ipaddress
import socket
import struct
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.web import Answer, Request, hosting, reply
from PIL import Image
from wanmetal_handler import addresses, isolated, media
from wanmetal_handler.addresses import Networks
from wanmetal_handler.failure import JobError
from wanmetal_handler.limit import Limit
from wanmetal_handler.settings import Settings

LOOPBACK = Networks("127.0.0.0/8")


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 4), mode: str = "RGB", **save: Any) -> bytes:
    data = io.BytesIO()
    image = Image.new(mode, size)
    image.putpixel((0, 0), (255, 0, 0) if mode == "RGB" else (255, 0, 0, 255))
    image.save(data, kind, **save)
    return data.getvalue()


def load(text: str, **settings: Any) -> Image.Image:
    given: dict[str, Any] = {"image_mb": 0.1, "image_megapixels": 0.01, "image_timeout": 30.0, "image_allow": LOOPBACK}
    with closing(Limit(60)) as limit:
        result = Image.open(io.BytesIO(media.load("image", text, Settings(**(given | settings)), limit)[1]))
    assert result.format == "PNG"
    return result


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def many_scans(scans: int, columns: int = 465, rows: int = 1057) -> bytes:
    """A JPEG of few bytes, each of whose scans makes a decoder walk all of its blocks."""
    blocks = columns * rows
    head = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    head += segment(0xC2, struct.pack(">BHHB", 8, rows * 8, columns * 8, 1) + bytes([1, 0x11, 0]))
    head += segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\x00")  # the bit 0: no difference to the last block
    head += segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")  # the bit 0: nothing in a run of blocks
    head += segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes((blocks + 7) // 8)
    runs = ("0" + "1" * 14) * (blocks // 32767)
    runs += "1" * (-len(runs) % 8)
    packed = bytes(int(runs[at : at + 8], 2) for at in range(0, len(runs), 8)).replace(b"\xff", b"\xff\0")
    return head + (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + packed) * scans + b"\xff\xd9"


def sends(data: bytes, status: int = 200, **how: Any) -> Answer:
    return lambda request: reply(request, data, status, **how)


def moved(to: str) -> Answer:
    return sends(b"", 302, headers={"Location": to})


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("head", ["", "data:image/png;base64,", "data:;base64,", "DATA:image/jpeg;charset=x;BASE64,"])
def test_base64_with_and_without_its_head(kind: str, head: str) -> None:
    assert load(head + b64(picture(kind))).size == (8, 4)


def test_base64_as_people_send_it() -> None:
    text = b64(picture())
    assert load("\n".join(text[at : at + 76] for at in range(0, len(text), 76)).rstrip("=")).size == (8, 4)


def test_a_turned_image_is_made_upright_and_loses_its_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    exif[0x010E] = "where I live"
    upright = load(b64(picture("JPEG", exif=exif)))
    assert upright.size == (4, 8)
    assert not dict(upright.getexif())
    assert b"where I live" not in media.upright(picture("JPEG", exif=exif), 1000)


@pytest.mark.parametrize(("value", "shown"), [(0, 0), (0x4000, 0x40), (0x8000, 0x80), (0xFFFF, 0xFF)])
def test_grey_of_16_bits_stays_as_bright(value: int, shown: int) -> None:
    data = io.BytesIO()
    Image.new("I;16", (2, 2), value).save(data, "PNG")
    assert load(b64(data.getvalue())).getpixel((1, 1)) == (shown,) * 3


def test_transparency_becomes_white() -> None:
    assert load(b64(picture(mode="RGBA"))).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("not base64!", "neither an http"),
        ("data:image/png,abc", "must hold base64"),
        ("file:///etc/passwd", "neither an http"),
        ("/etc/passwd", "it has to be PNG, JPEG, WEBP"),
        (b64(b"hello"), "it has to be PNG, JPEG, WEBP"),
        (b64(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "it has to be PNG, JPEG, WEBP"),
        (b64(picture("GIF")), "it has to be PNG, JPEG, WEBP"),
        (b64(picture(size=(90, 90))[:60]), "damaged"),
        (b64(picture(size=(101, 100))), "101x100 pixels; at most 0.01 million are taken"),
        (b64(bytes(200_000)), "larger than 0.1 MB"),
        ("http://[::1", "cannot be fetched: its address cannot be read"),
        ("https://example.com:99999/", "cannot be fetched: its address cannot be read"),
        ("http://a b/", "cannot be fetched: its address cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(text: str, problem: str) -> None:
    with pytest.raises(JobError, match=problem) as caught:
        load(text)
    assert caught.value.kind == "image"


def test_an_image_is_fetched() -> None:
    seen = []

    def answer(request: Request) -> None:
        seen.append((request.path, request.headers["Host"]))
        sends(picture())(request)

    with hosting(answer) as url:
        assert load(f"{url}/a b.png?x=ä&y=%20").size == (8, 4)
    assert seen == [("/a%20b.png?x=%C3%A4&y=%20", url.removeprefix("http://"))]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (sends(b"", 404), "its host answered 404"),
        (sends(bytes(100_001)), "larger than 0.1 MB"),
        (sends(b"", claim=10**9), "larger than 0.1 MB"),
        (sends(b"x", claim=50), "cannot be fetched: IncompleteRead"),
        (moved("/again"), "more than 3 redirects"),
        (moved("file:///etc/passwd"), "only http and https"),
        (
            moved("http://169.254.169.254/latest/meta-data"),
            "not on the public internet",
        ),
        (moved("http://[::ffff:10.0.0.1]/"), "not on the public internet"),
        (moved("http://me:pw@example.com/"), "user name or a password"),
        (moved("http://:::/"), "cannot be fetched"),
    ],
)
def test_an_image_that_cannot_be_fetched(answer: Answer, problem: str) -> None:
    with hosting(answer) as url, pytest.raises(JobError, match=problem):
        load(f"{url}/x?token=s3cret")


GOOD_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (GOOD_HEAD + b"Content-Length: 50\r\n\r\n", b"x"),
        (GOOD_HEAD + b"\r\n", b"x"),
        (b"", b"H"),
        (GOOD_HEAD + b"X: ", b"x"),
        (b"HTTP/1.1 404 Gone\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (GOOD_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1"),
        (GOOD_HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    ],
    ids=["body", "body-without-length", "status", "header", "headers", "continue", "chunk-length", "trailers"],
)
def test_slow_hosts_are_left(first: bytes, again: bytes) -> None:
    def drip(request: Request) -> None:
        request.wfile.write(first)
        with suppress(OSError):
            for _ in range(1200):
                request.wfile.write(again)
                request.wfile.flush()
                time.sleep(0.05)

    started = time.monotonic()
    with hosting(drip) as url, pytest.raises(JobError, match=r"was not fetched and decoded within 0\.3 s"):
        load(url, image_timeout=0.3)
    assert time.monotonic() - started < 20


def test_slow_hosts_are_left_during_the_handshake() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        talks, _ = listener.accept()
        with talks, suppress(OSError):
            talks.sendall(b"\x16\x03\x03\x10\x00")  # a record of 4096 bytes
            for _ in range(1200):
                talks.sendall(b"x")
                time.sleep(0.05)

    threading.Thread(target=answer, daemon=True).start()
    started = time.monotonic()
    with listener, pytest.raises(JobError, match=r"was not fetched and decoded within 0\.3 s"):
        load(f"https://127.0.0.1:{listener.getsockname()[1]}/", image_timeout=0.3)
    assert time.monotonic() - started < 20


def test_loopback_is_refused_unless_allowed() -> None:
    with hosting(sends(picture())) as url, pytest.raises(JobError, match="not on the public internet"):
        load(url, image_allow=Networks())


def test_a_name_that_changes_its_answer_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to the address that was checked: nobody asks a second time."""
    asked: list[str] = []
    went: list[tuple[str, int]] = []

    def resolve(host: str, port: int, *_: object) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", ("93.184.216.34" if len(asked) == 1 else "127.0.0.1", port))]

    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            went.append(address)
            raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(JobError, match="cannot be fetched: OSError"):
        media.read("image", "https://rebind.example/a.png", 1000, 1000, 60.0, ())
    assert (asked, went) == (["rebind.example"], [("93.184.216.34", 443)])


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(JobError, match="not on the public internet"):
        media.read("image", "http://both.example/", 1000, 1000, 60.0, ())


@pytest.mark.parametrize("address", ["169.254.169.254", "168.63.129.16", "192.0.0.192", "100.100.100.200"])
def test_what_clouds_tell_their_machines_is_never_fetched(address: str) -> None:
    with pytest.raises(JobError, match="not on the public internet"):
        load(f"http://{address}/latest/meta-data", image_allow=Networks("0.0.0.0/0 ::/0"))


@pytest.mark.parametrize("what", ["scans", "name server"])
def test_what_would_take_long_is_ended(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a decoder nor a name server asks how late it is."""
    text = b64(many_scans(20_000)) if what == "scans" else "http://slow.example/"
    monkeypatch.setattr(isolated, "_source", isolated._Source())
    slow = "import socket, time; socket.getaddrinfo = lambda *_, **__: time.sleep(60)"
    monkeypatch.setattr(isolated, "_COMMAND", [sys.executable, "-c", f"{slow}; {isolated._COMMAND[2]}"])
    started = time.monotonic()
    with pytest.raises(JobError, match=r"was not fetched and decoded within 0\.5 s"):
        load(text, image_mb=20, image_megapixels=40, image_timeout=0.5)
    assert time.monotonic() - started < 30


def test_a_decoder_that_wants_too_much_memory_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "_PIXEL_BYTES", 0)
    monkeypatch.setattr(media, "_BASE_BYTES", 0)
    with pytest.raises(JobError, match="needs more memory"):
        load(b64(picture(size=(6000, 6000))), image_mb=20, image_megapixels=40)
    monkeypatch.undo()
    assert load(b64(picture())).size == (8, 4)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*(("PNG", mode) for mode in ("RGB", "RGBA", "LA", "P")), ("JPEG", "RGB"), ("WEBP", "RGB"), ("WEBP", "RGBA")],
)
def test_the_largest_image_fits_its_memory(kind: str, mode: str) -> None:
    given = io.BytesIO()
    how: dict[str, Any] = {"progressive": True, "subsampling": 0} if kind == "JPEG" else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4000, 4000), "red").convert(mode).save(given, kind, exif=exif, **how)
    assert load(b64(given.getvalue()), image_mb=20, image_megapixels=16).size == (4000, 4000)


def test_a_source_of_processes_that_died_is_started_again() -> None:
    load(b64(picture()))
    source = isolated._source._process
    assert source is not None
    source.kill()
    source.wait()
    assert load(b64(picture())).size == (8, 4)


def test_a_source_that_dies_as_it_forks_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    dying = """
import os, signal
from wanmetal_handler import isolated
fork = os.fork
os.fork = lambda: fork() and os.kill(os.getpid(), signal.SIGKILL)
isolated.serve()
"""
    monkeypatch.setattr(isolated, "_COMMAND", [sys.executable, "-c", dying])
    monkeypatch.setattr(isolated, "_source", isolated._Source())
    assert load(b64(picture())).size == (8, 4)


def test_processes_with_strangers_data_have_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    monkeypatch.setattr(isolated, "_source", isolated._Source())
    load(b64(picture()))
    source = isolated._source._process
    assert source is not None
    environment = Path(f"/proc/{source.pid}/environ").read_text()
    assert "PATH=" in environment
    assert "s3cret" not in environment


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("0.1.2.3", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.168.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::5db8:d822", False),
        ("fec0::1", False),
        ("::127.0.0.1", False),
        ("::93.184.216.34", False),
        ("64:ff9b::5db8:d822", True),
        ("2002:a00:1::", False),
        ("2002:5db8:d822::1", False),
        ("168.63.129.16", False),
        ("192.0.0.192", False),
        ("192.0.0.8", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("203.0.113.9", False),
        ("240.0.0.1", False),
        ("100.100.100.200", False),
        ("::ffff:0:5db8:d822", False),
        ("::ffff:0:7f00:1", False),
        ("::ffff:168.63.129.16", False),
        ("::ffff:192.88.99.1", False),
        ("64:ff9b::a83f:8110", False),
        ("64:ff9b::c000:c0", False),
        ("64:ff9b:1::1", False),
        ("100::1", False),
        ("2001:2::1", False),
        ("2001:20::1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("3fff:fff:ffff::1", False),
        ("5f00::1", False),
        ("4000::1", False),
        ("fd00:ec2::254", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert addresses.is_public(ipaddress.ip_address(address)) is public
