from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import mp4
from hypothesis import given
from hypothesis import strategies as st
from wanmetal_handler.failure import JobError
from wanmetal_handler.output import measured


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (mp4(), (64, 48, 5, 16.0, 0.312)),
        (mp4(720, 1280, 401, 60), (720, 1280, 401, 60.0, 6.683)),
        (mp4(640, 480, 81, 15360, 960), (640, 480, 81, 16.0, 5.062)),
    ],
)
def test_a_video_is_measured(data: bytes, expected: tuple[Any, ...]) -> None:
    assert tuple(measured(data, "x.MP4").values()) == expected


@pytest.mark.parametrize("data", [b"", b"GIF89a and so on", mp4(frames=0), mp4(scale=0), mp4()[:-20]])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    with pytest.raises(JobError, match="video"):
        measured(data, "x.mp4")


def box(name: bytes, body: bytes = b"") -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + name + body


def test_boxes_without_an_end_are_not_gone_through() -> None:
    """A pack writes what it wants, and the time is the handler's."""
    nested = b""
    for _unused in range(3000):
        nested = box(b"moov", nested)
    many = b"".join(box(number.to_bytes(4, "big")) for number in range(200_000))
    times = box(b"stts", (2**21).to_bytes(8, "big") + bytes(2**24))
    for data in (nested, many + mp4(), mp4().partition(b"stts")[0][:-4] + times):
        with pytest.raises(JobError, match="video"):
            measured(data, "x.mp4")


def test_what_is_not_measured() -> None:
    assert set(measured(b"", "x.webm").values()) == {None}


@given(st.binary(max_size=400) | st.tuples(st.integers(0, 500), st.integers(0, 255)))
def test_damage_is_seen_or_harmless(damage: bytes | tuple[int, int]) -> None:
    data = bytearray(mp4())
    if isinstance(damage, tuple):
        data[damage[0] % len(data)] = damage[1]
    else:
        data = bytearray(damage)
    try:
        found = measured(bytes(data), "x.mp4")
    except JobError:
        return
    assert found["num_frames"] > 0
