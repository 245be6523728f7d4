from __future__ import annotations

import pytest
from ansible_collections.wanmetal.comfyui.roles.handler.files.wanmetal_handler.video import (
    Measures,
    VideoError,
    measure,
)
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import mp4
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (mp4(), Measures(64, 48, 5, 5 / 16)),
        (mp4(720, 1280, 401, 60), Measures(720, 1280, 401, 401 / 60)),
        (mp4(640, 480, 81, 15360, 960), Measures(640, 480, 81, 81 / 16)),
    ],
)
def test_a_video_is_measured(data: bytes, expected: Measures) -> None:
    assert measure(data) == expected


@pytest.mark.parametrize("data", [b"", b"GIF89a and so on", mp4(frames=0), mp4(scale=0), mp4()[:-20]])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    with pytest.raises(VideoError):
        measure(data)


@given(st.binary(max_size=400) | st.tuples(st.integers(0, 500), st.integers(0, 255)))
def test_damage_is_seen_or_harmless(damage: bytes | tuple[int, int]) -> None:
    data = bytearray(mp4())
    if isinstance(damage, tuple):
        data[damage[0] % len(data)] = damage[1]
    else:
        data = bytearray(damage)
    try:
        found = measure(bytes(data))
    except VideoError:
        return
    assert found.frames > 0
