from __future__ import annotations

import struct
import zlib

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.png import Picture, PNGError, decode
from ansible_collections.wanmetal.comfyui.tests.unit.fake_comfyui import Frame, encode, png

FRAME: Frame = [[((x * 7 % 256) / 255, (y * 31 % 256) / 255, (x * y % 256) / 255) for x in range(9)] for y in range(11)]


def header(width: int = 1, height: int = 1, depth: int = 8, colour: int = 2, interlace: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)


def data(raw: bytes) -> tuple[bytes, bytes]:
    return b"IDAT", zlib.compress(raw)


END = (b"IEND", b"")


def test_all_row_filters() -> None:
    picture = decode(encode(FRAME))
    assert (picture.width, picture.height) == (9, 11)
    expected = [tuple(int(255 * channel) for channel in pixel) for row in FRAME for pixel in row]
    assert [picture.pixel(i % 9, i // 9) for i in range(99)] == expected


def test_transparency_is_dropped_and_parts_are_joined() -> None:
    raw = zlib.compress(bytes([0, 1, 2, 3, 99, 4, 5, 6, 99]))
    parts = (b"IDAT", raw[:4]), (b"IDAT", raw[4:])
    assert decode(png(header(width=2, colour=6), *parts, END)) == Picture(2, 1, bytes([1, 2, 3, 4, 5, 6]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "is no PNG"),
        (b"<html></html>", "is no PNG"),
        (encode(FRAME)[:-13], "cut off"),
        (encode(FRAME)[:60], "cut off"),
        (encode(FRAME)[:10], "cut off"),
        (encode(FRAME).replace(b"prompt", b"PROMPT"), "wrong checksum in its tEXt part"),
        (png(END), "no header"),
        (png(header(depth=16), data(bytes(7)), END), "16 bits"),
        (png(header(colour=3), data(bytes(2)), END), "colour type 3"),
        (png(header(interlace=1), data(bytes(4)), END), "interlace 1"),
        (png(header(width=0), data(b""), END), "0x1 pixels"),
        (png(header(width=1 << 30, height=1 << 30), data(b""), END), "cannot be read"),
        (png(header(), data(bytes(3)), END), "cut off: 3 of 4 bytes"),
        (png(header(), (b"IDAT", b"nonsense"), END), "pixels are damaged"),
        (png(header(), data(bytes([9, 1, 2, 3])), END), "no row filter 9"),
    ],
)
def test_bad_files(bad: bytes, message: str) -> None:
    with pytest.raises(PNGError, match=message):
        decode(bad)
