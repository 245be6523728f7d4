"""A PNG decoder for what ComfyUI writes: 8 bits per channel, RGB or RGBA, not interlaced."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 6: 4}
_MAX_PIXELS = 64 * 1024 * 1024


class PNGError(Exception):
    """Bytes that are no PNG, or one of a kind that is not read here."""


@dataclass(frozen=True)
class Picture:
    """Pixels as RGB triples, row by row."""

    width: int
    height: int
    rgb: bytes

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        """Return the colour at a place."""
        start = (y * self.width + x) * 3
        return self.rgb[start], self.rgb[start + 1], self.rgb[start + 2]


def decode(data: bytes) -> Picture:
    """Decode a PNG. Transparency is dropped."""
    header = b""
    packed = bytearray()
    for kind, body in _chunks(data):
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed += body
    if len(header) != 13:
        raise PNGError("the PNG has no header")
    width, height, depth, colour, _unused, _unused, interlace = struct.unpack(">IIBBBBB", header)
    if depth != 8 or colour not in _CHANNELS or interlace != 0:
        raise PNGError(f"a PNG of {depth} bits, colour type {colour}, interlace {interlace} cannot be read")
    if not 0 < width * height <= _MAX_PIXELS:
        raise PNGError(f"a PNG of {width}x{height} pixels cannot be read")
    channels = _CHANNELS[colour]
    size = (width * channels + 1) * height
    try:
        raw = zlib.decompressobj().decompress(bytes(packed), size)
    except zlib.error as error:
        raise PNGError(f"the PNG's pixels are damaged: {error}") from error
    if len(raw) != size:
        raise PNGError(f"the PNG is cut off: {len(raw)} of {size} bytes of pixels")
    pixels = _unfilter(raw, width * channels, channels)
    if channels == 4:
        del pixels[3::4]
    return Picture(width, height, bytes(pixels))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not data.startswith(_SIGNATURE):
        raise PNGError(f"this is no PNG: it begins with {data[:8]!r}")
    at = len(_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        end = at + 8
        if end > len(data):
            raise PNGError("the PNG is cut off")
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body, check = data[at + 4 : end], data[end : end + length], data[end + length : end + length + 4]
        if len(check) != 4:
            raise PNGError("the PNG is cut off")
        if struct.unpack(">I", check)[0] != zlib.crc32(kind + body):
            raise PNGError(f"the PNG is damaged: wrong checksum in its {kind.decode('latin-1')} part")
        yield kind, body
        at = end + length + 4


def _unfilter(raw: bytes, stride: int, step: int) -> bytearray:
    pixels = bytearray()
    above = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        method, line = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        if method == 1:
            for i in range(step, stride):
                line[i] = (line[i] + line[i - step]) & 255
        elif method == 2:
            for i in range(stride):
                line[i] = (line[i] + above[i]) & 255
        elif method == 3:
            for i in range(stride):
                left = line[i - step] if i >= step else 0
                line[i] = (line[i] + (left + above[i]) // 2) & 255
        elif method == 4:
            for i in range(stride):
                left, corner = (line[i - step], above[i - step]) if i >= step else (0, 0)
                line[i] = (line[i] + _paeth(left, above[i], corner)) & 255
        elif method != 0:
            raise PNGError(f"the PNG is damaged: there is no row filter {method}")
        pixels += line
        above = line
    return pixels


def _paeth(left: int, above: int, corner: int) -> int:
    estimate = left + above - corner
    to_left, to_above, to_corner = abs(estimate - left), abs(estimate - above), abs(estimate - corner)
    if to_left <= to_above and to_left <= to_corner:
        return left
    return above if to_above <= to_corner else corner
