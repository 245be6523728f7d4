"""Media that are made to do harm: bombs, endless streams, other formats than they say, names of other files."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import av
import pytest
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_graphs import film, own
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_images import LOOPBACK, picture
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_service import serving, until
from ansible_collections.wanmetal.comfyui.tests.web import Request, hosting, reply
from PIL import Image
from wanmetal_handler import isolated, media
from wanmetal_handler.failure import JobError
from wanmetal_handler.limit import Limit
from wanmetal_handler.settings import Settings

ZEROS = zlib.compress(bytes(20_000_000), 9)
ENDINGS = {"image": "png", "video": "mp4", "audio": "wav"}
INSIDE = "what-is-in-another-file"

MP4, MKV = film(), b"\x1aE\xdf\xa3"
BOXES = b"".join(struct.pack(">I4s", 2**31 - number, b"moov") for number in range(99_999))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (1, 1), frames: int = 1) -> bytes:
    data = io.BytesIO()
    first, *others = [Image.new("P", size, number % 250) for number in range(frames)]
    first.save(data, kind, **({"save_all": True, "append_images": others} if others else {}))
    return data.getvalue()


def sized(data: bytes, size: int, at: int, order: str) -> bytes:
    """The same file, which says that it is so wide and so high."""
    return data[:at] + struct.pack(f"{order}HH", size, size) + data[at + 4 :]


def slow(kind: str) -> bytes:
    """One frame, which is shown for three hours."""
    result = io.BytesIO()
    with av.open(io.BytesIO(MP4)) as source, av.open(result, "w", format=kind) as file:
        stream = file.add_stream_from_template(source.streams[0])
        packet = next(source.demux())
        packet.duration = int(3 * 3600 / packet.time_base)
        packet.stream = stream
        file.mux(packet)
    return result.getvalue()


def streams(kind: str, number: int) -> bytes:
    result = io.BytesIO()
    with av.open(result, "w", format=kind) as file:
        found = [file.add_stream("mpeg4", rate=8) for _ in range(number)]
        for stream in found:
            stream.width = stream.height = 16
            stream.pix_fmt = "yuv420p"
        for stream in found:
            file.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
            file.mux(stream.encode())
    return result.getvalue()


def wav(seconds: int, rate: int = 8000, *, samples: bool = True) -> bytes:
    size = seconds * rate
    head = struct.pack("<4sI4s4sIHH", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1)
    head += struct.pack("<IIHH4sI", rate, rate, 1, 8, b"data", size)
    return head + bytes(size if samples else 0)


def load(kind: str, text: str) -> tuple[str, bytes]:
    with closing(Limit(600)) as limit:
        settings = Settings(image_mb=5, video_mb=5, image_megapixels=4, image_timeout=300.0, image_allow=LOOPBACK)
        return media.load(kind, text, settings, limit)


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "a PNG of 4 gigapixels": (
        "image",
        png(65535, 65535, chunk(b"IDAT", ZEROS)),
        "65535x65535 pixels; at most 4 million",
    ),
    "a PNG whose text is a bomb": ("image", png(8, 8, chunk(b"zTXt", b"a\0\0" + ZEROS)), "damaged: Decompressed data"),
    "a PNG whose profile is a bomb": (
        "image",
        png(8, 8, chunk(b"iCCP", b"a\0\0" + ZEROS)),
        "damaged: Decompressed data",
    ),
    "a PNG of nothing but empty chunks": ("image", png(8, 8, *[chunk(b"IDAT", b"")] * 100_000), "damaged: "),
    "a TIFF": ("image", picture("TIFF", compression="tiff_deflate"), "has to be PNG, JPEG, WEBP"),
    "a GIF as an image": ("image", saved("GIF"), "has to be PNG, JPEG, WEBP"),
    "a video as an image": ("image", MP4, "has to be PNG, JPEG, WEBP"),
    "a WebP of many megapixels": ("image", picture("WEBP", (2100, 2100)), "2100x2100 pixels; at most 4 million"),
    "a GIF of 4 gigapixels": ("video", sized(saved("GIF"), 65535, 6, "<"), "damaged: |needs more memory|65535x65535"),
    "an MP4 of many megapixels": ("video", film(frames=1, size=2048, codec="libx264"), "frames of 2048x2048 pixels"),
    "an MP4 of hours in one frame": ("video", slow("mp4"), "lasts longer than 120 s"),
    "an MKV of hours in one frame": ("video", slow("matroska"), "lasts longer than 120 s"),
    "an image as a video": ("video", picture(), "has to be an MP4"),
    "a sound as a video": ("video", wav(1), "has to be an MP4"),
    "a list of FFmpeg": ("video", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "has to be an MP4"),
    "a list of FFmpeg behind the head of an MP4": (
        "video",
        MP4[:32] + b"ffconcat version 1.0\nfile /etc/passwd",
        "damaged: ",
    ),
    "a playlist of HLS": ("video", b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", "has to be an MP4"),
    "a playlist of HLS behind the head of an MKV": ("video", MKV + b"#EXTM3U\n/etc/passwd\n", "damaged: "),
    "a manifest of DASH": (
        "video",
        b"<?xml version='1.0'?><MPD><BaseURL>file:///etc/</BaseURL></MPD>",
        "has to be an MP4",
    ),
    "a session of RTSP": ("video", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n", "has to be an MP4"),
    "an AVI": ("video", film("avi"), "has to be an MP4"),
    "an MPEG transport stream": ("video", film("mpegts", "mpeg2video"), "has to be an MP4"),
    "an MP4 of boxes in boxes": ("video", MP4[:24] + BOXES, "damaged: "),
    "an MKV of elements in elements": ("video", MKV + b"\x80\x18\x53\x80\x67\x01" + b"\xff" * 2_000_000, "damaged: "),
    "an MP4 of zeros": ("video", MP4[:24] + bytes(4_000_000), "damaged: "),
    "a sound of hours": ("audio", wav(3 * 3600, 100), "lasts longer than 120 s"),
    "a sound of hours, one sample a second": ("audio", wav(9 * 3600, 1), "lasts longer than 120 s"),
    "an MP3 of hours": ("audio", (b"\xff\xfb\x10\x00" + bytes(100)) * 40_000, "lasts longer than 120 s"),
    "an MP3 of ones": ("audio", b"\xff" * 3_000_000, "the audio is empty"),
    "an MP3 that is a label alone": ("audio", b"ID3\x04\0\0\x01\x7f\x7f\x7f" + bytes(4_000_000), "damaged: "),
    "an OGG of zeros": ("audio", b"OggS" + bytes(4_000_000), "damaged: "),
    "a FLAC of zeros": ("audio", b"fLaC" + bytes(4_000_000), "damaged: "),
    "a video as a sound": ("audio", MP4, "has to be a WAV"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_told_why(name: str) -> None:
    kind, data, said = REFUSED[name]
    with pytest.raises(JobError, match=said) as caught:
        load(kind, base64.b64encode(data).decode())
    assert caught.value.kind == kind
    assert "/" not in str(caught.value).replace("http(s)", "").replace("file/", ""), "no folder of this host is told"


@pytest.mark.parametrize(
    ("kind", "data", "most"),
    [
        pytest.param("image", png(1000, 1000, chunk(b"IDAT", ZEROS)), 100_000, id="a PNG"),
        pytest.param("image", saved("PNG", (100, 100), 200), 10_000, id="frames of a PNG"),
        pytest.param("image", saved("WEBP", (100, 100), 200), 10_000, id="frames of a WebP"),
        pytest.param("video", streams("matroska", 120), 10_000, id="streams of an MKV"),
        pytest.param("video", streams("mp4", 200), 10_000, id="streams of an MP4"),
        pytest.param("audio", wav(100 * 3600, samples=False) + bytes(1000), 2000, id="a sound that says hours"),
    ],
)
def test_what_is_too_much_is_left_out(kind: str, data: bytes, most: int) -> None:
    """One picture, one stream of each kind, and no byte behind them."""
    assert len(load(kind, base64.b64encode(data).decode())[1]) < most


def test_a_movie_that_names_a_file_gets_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "other").write_text(INSIDE * 1000)
    for reference in (f"{tmp_path}/other", f"file://{tmp_path}/other"):
        text = reference.encode() + b"\0"
        old = struct.pack(">I4sI", 12, b"url ", 1)  # the samples are in this file
        assert MP4.count(old) == 1
        new = struct.pack(">I4sI", 12 + len(text), b"url ", 0) + text
        data = MP4.replace(old, new)
        for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
            at = data.index(box) - 4
            data = data[:at] + struct.pack(">I", struct.unpack_from(">I", data, at)[0] + len(text)) + data[at + 4 :]
        with suppress(JobError):
            assert INSIDE.encode() not in load("video", base64.b64encode(data).decode())[1]


def endless(request: Request) -> None:
    request.send_response(200)
    chunked = request.path == "/chunked"
    if chunked:
        request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    part = bytes(65536)
    with suppress(OSError):
        while True:
            request.wfile.write(b"10000\r\n" + part + b"\r\n" if chunked else part)


@pytest.mark.parametrize("kind", ["image", "mask", "video", "audio"])
@pytest.mark.parametrize("path", ["/plain", "/chunked"])
def test_a_stream_without_an_end_is_left(kind: str, path: str) -> None:
    with hosting(endless) as url, pytest.raises(JobError, match=f"the {kind} is larger than 5 MB"):
        load(kind, url + path)


def test_a_body_that_unpacks_to_more_stays_packed() -> None:
    def packed(request: Request) -> None:
        reply(request, ZEROS, headers={"Content-Encoding": "gzip"})

    with hosting(packed) as url, pytest.raises(JobError, match="has to be PNG"):
        load("image", url)


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def opened() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_jobs_with_all_of_them_are_answered_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(isolated, "_source", isolated._Source())
    settings: dict[str, Any] = {"raw_workflows": 1, "concurrency": 2, "job_timeout": 600.0, "image_timeout": 300.0}
    settings |= {"image_megapixels": 4.0, "image_mb": 5.0, "video_mb": 5.0}
    with scripted() as (fake, url), serving(tmp_path, url, **settings) as service:
        known = set(files(tmp_path))
        descriptors = opened()
        for number, (kind, data, _) in enumerate(REFUSED.values()):
            file = {"name": f"x.{ENDINGS[kind]}", "file": base64.b64encode(data).decode()}
            service.accept(str(number), own(files=[file]))
        for number, (kind, *_) in enumerate(REFUSED.values()):
            job = service.wait(str(number), 600) or {}
            assert (job["status"], job["output"]["failure"]["kind"]) == ("FAILED", kind), job
            assert json.loads(json.dumps(job["output"])) == job["output"]
            assert job["output"]["error"].startswith(f"the {kind} ")
        assert fake.graphs == []
        assert set(files(tmp_path)) == known
        until(lambda: opened() < descriptors + len(REFUSED) // 2)
