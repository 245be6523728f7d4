"""Fingerprints of OpenPGP keys (RFC 4880), computed from their bytes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

_PUBLIC_KEY = 6


def fingerprints(armored: str) -> list[str]:
    """Fingerprints of the primary keys of version 4 in an armored text. Empty where it is damaged."""
    found = []
    for block in re.findall(
        r"-----BEGIN PGP PUBLIC KEY BLOCK-----\s*\n(.*?)\n-----END PGP PUBLIC KEY BLOCK-----", armored, re.DOTALL
    ):
        # Headers end at an empty line; the checksum begins with =.
        body = re.sub(r"\A(?:[A-Za-z]+: .*\n)*\s*\n?", "", block.replace("\r", ""))
        try:
            data = base64.b64decode(re.sub(r"\n=.{4}\s*\Z", "", body), validate=False)
            for tag, packet in _packets(data):
                if tag == _PUBLIC_KEY and packet[:1] == b"\x04":
                    # The hash is SHA-1 by definition; what it protects against is a mirror that sends another key.
                    head = b"\x99" + len(packet).to_bytes(2, "big")
                    found.append(hashlib.sha1(head + packet, usedforsecurity=False).hexdigest().upper())
        except (binascii.Error, IndexError, ValueError):
            return []
    return found


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        first = data[at]
        if not first & 0x80:
            raise ValueError("no packet begins here")
        if first & 0x40:
            tag, length, at = first & 0x3F, *_new_length(data, at + 1)
        else:
            tag, size = (first >> 2) & 0x0F, 1 << (first & 3)
            if size == 8:
                raise ValueError("a packet of unknown length")
            length, at = int.from_bytes(data[at + 1 : at + 1 + size], "big"), at + 1 + size
        if at + length > len(data):
            raise ValueError("the text ends within a packet")
        yield tag, data[at : at + length]
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    """Length of a packet and where its content begins."""
    first = data[at]
    if first < 192:
        return first, at + 1
    if first < 224:
        return ((first - 192) << 8) + data[at + 1] + 192, at + 2
    if first == 255:
        return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    raise ValueError("a packet in parts")
