"""What an MP4 file says of itself: size, frames and duration, from its own tables."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


class VideoError(Exception):
    """Bytes that are no MP4 with a video in it."""


@dataclass(frozen=True)
class Measures:
    """What was measured. Seconds are those that the frames are shown for."""

    width: int
    height: int
    frames: int
    seconds: float


def measure(data: bytes) -> Measures:
    """Measure the first video track."""
    try:
        for track in _find(memoryview(data), "moov", "trak"):
            (handler,) = list(_find(track, "mdia", "hdlr"))[:1] or [memoryview(b"")]
            if bytes(handler[8:12]) == b"vide":
                return _track(track)
    except (struct.error, IndexError) as error:
        raise VideoError("the video is damaged") from error
    raise VideoError("there is no MP4 video in it")


def _track(track: memoryview) -> Measures:
    header = next(_find(track, "tkhd"), None)
    clock = next(_find(track, "mdia", "mdhd"), None)
    times = next(_find(track, "mdia", "minf", "stbl", "stts"), None)
    if header is None or clock is None or times is None:
        raise VideoError("the video has no table of its frames")
    width, height = struct.unpack_from(">II", header, len(header) - 8)
    (scale,) = struct.unpack_from(">I", clock, 20 if clock[0] == 1 else 12)
    (entries,) = struct.unpack_from(">I", times, 4)
    pairs = list(struct.iter_unpack(">II", times[8 : 8 + 8 * entries]))
    frames, length = sum(count for count, _ in pairs), sum(count * delta for count, delta in pairs)
    if len(pairs) != entries or not frames or not scale:
        raise VideoError("the video has no frames, or its tables are cut off")
    return Measures(width >> 16, height >> 16, frames, length / scale)


def _find(data: memoryview, kind: str, *inner: str) -> Iterator[memoryview]:
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        start = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            start = 16
        size = size or len(data) - at
        if size < start or at + size > len(data):
            raise VideoError("the video is cut off")
        if name == kind.encode():
            body = data[at + start : at + size]
            yield from _find(body, *inner) if inner else iter([body])
        at += size
