"""The image of a request: fetched or decoded, proven to be one, and made upright.

What a stranger names is fetched from public addresses only. The name is resolved once, and the connection goes to the
address that was checked, so a name that answers differently the next time gains nothing. Redirects pass the same way.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import math
import re
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from urllib.parse import urljoin

from PIL import Image, ImageOps, UnidentifiedImageError
from urllib3.util import parse_url

from .failure import JobError
from .settings import Network, Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_FORMATS = ("PNG", "JPEG", "WEBP")
_DATA = re.compile(r"data:(image/[\w.+-]+)?(;[\w=+.-]+)*;base64,", re.IGNORECASE)
_MOST_REDIRECTS = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# A network's own NAT64, site-local addresses, and the old way to write IPv4: the library takes them for the internet's.
_NOT_PUBLIC = [ipaddress.ip_network(text) for text in ("64:ff9b:1::/48", "fec0::/10", "::/96")]


def load(text: str, settings: Settings, seconds: float = math.inf) -> bytes:
    """Return the image that a request names or holds, as a PNG without metadata."""
    most_bytes = int(settings.image_mb * 1e6)
    if re.match(r"https?://", text, re.IGNORECASE):
        data = _fetched(text, most_bytes, max(0.1, min(seconds, settings.image_timeout)), settings.image_allow)
    else:
        data = _decoded(text, most_bytes)
    return upright(data, int(settings.image_megapixels * 1e6))


def upright(data: bytes, most_pixels: int) -> bytes:
    """Decode all of an image, turn it as its EXIF data says, and give it as PNG."""
    most = f"at most {most_pixels / 1e6:g} million are taken"
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > most_pixels:
                raise JobError("image", f"the image has {image.width}x{image.height} pixels; {most}")  # noqa: TRY301
            picture = ImageOps.exif_transpose(image)
            if picture.mode.startswith("I"):  # grey of 16 bits, all of which is cut off to white otherwise
                picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            # Transparency becomes black otherwise, whatever lies under it.
            picture = picture.convert("RGBA")
            ground = Image.new("RGBA", picture.size, "white")
            ground.alpha_composite(picture)
            result = io.BytesIO()
            ground.convert("RGB").save(result, "PNG", compress_level=1)
    except UnidentifiedImageError as error:
        raise JobError("image", f"the image is none: it has to be {', '.join(_FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise JobError("image", f"the image is too large; {most}") from error
    except JobError:
        raise
    except Exception as error:  # a decoder given damaged data fails in many ways
        raise JobError("image", f"the image is damaged: {type(error).__name__}") from error
    return result.getvalue()


def is_public(address: Address) -> bool:
    """Say whether an address is one of the internet's, also where it hides another."""
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if hidden or address.teredo:
            return hidden is not None and is_public(hidden)
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC)


def _decoded(text: str, most_bytes: int) -> bytes:
    head = _DATA.match(text[:200])
    if not head and text[:5].lower() == "data:":
        raise JobError("image", "the data: URI of the image must hold base64: data:image/png;base64,…")
    body = re.sub(r"\s+", "", text[head.end() if head else 0 :])
    if len(body) * 3 // 4 > most_bytes + 2:
        raise _too_large(most_bytes)
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError as error:
        raise JobError("image", "the image is neither an http(s) address nor base64") from error


def _fetched(url: str, most_bytes: int, seconds: float, allowed: Sequence[Network]) -> bytes:
    deadline = time.monotonic() + seconds
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            status, answer = _get(url, most_bytes, deadline, allowed)
            if isinstance(answer, bytes):
                return answer
            if not answer:
                raise _unfetched(f"its host answered {status}")
            url = urljoin(url, answer)
    except TimeoutError as error:
        raise _late(seconds) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise _late(seconds) from error
        raise _unfetched(type(error).__name__) from error
    raise _unfetched(f"more than {_MOST_REDIRECTS} redirects")


def _get(url: str, most_bytes: int, deadline: float, allowed: Sequence[Network]) -> tuple[int, bytes | str]:
    """Return the status, and what is there, or the address that it has moved to."""
    parts = parse_url(url)
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise _unfetched("only http and https addresses are")
    if parts.auth:
        raise _unfetched("its address holds a user name or a password")
    tls, host = parts.scheme == "https", parts.host.strip("[]")
    port = parts.port or (443 if tls else 80)
    connection = (http.client.HTTPSConnection if tls else http.client.HTTPConnection)(host, port)
    opened = _connected(host, port, deadline, allowed)
    if tls:
        context = ssl.create_default_context()
        opened = context.wrap_socket(opened, server_hostname=host, do_handshake_on_connect=False)
    connection.sock = opened
    with closing(connection), _ended_at(deadline, opened):
        if isinstance(opened, ssl.SSLSocket):
            opened.do_handshake()
        connection.request("GET", parts.request_uri, headers={"User-Agent": "wanmetal", "Accept": "image/*"})
        response = connection.getresponse()
        _left(deadline)  # an end at the deadline reads like the end of what was sent, here and below
        if response.status != 200:
            return response.status, response.headers.get("Location", "") if response.status in range(301, 309) else ""
        if int(response.headers.get("Content-Length") or 0) > most_bytes:
            raise _too_large(most_bytes)
        data = bytearray()
        while part := response.read1(1 << 16):
            data += part
            if len(data) > most_bytes:
                raise _too_large(most_bytes)
        _left(deadline)
        if response.length:
            raise http.client.IncompleteRead(b"")
        return 200, bytes(data)


@contextmanager
def _ended_at(deadline: float, opened: socket.socket) -> Iterator[None]:
    """End a connection at the deadline. A limit of its own begins anew with each byte that it receives."""

    def end() -> None:
        with suppress(OSError):
            socket.socket.shutdown(opened, socket.SHUT_RDWR)  # that of TLS takes away what another thread reads from

    timer = threading.Timer(_left(deadline), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _connected(host: str, port: int, deadline: float, allowed: Sequence[Network]) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _unfetched("the name of its host is not known") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not all(is_public(address) or any(address in network for network in allowed) for address in addresses):
        raise _unfetched("its host is not on the public internet")
    for address in addresses[:-1]:
        with suppress(OSError):
            return socket.create_connection((str(address), port), _left(deadline))
    return socket.create_connection((str(addresses[-1]), port), _left(deadline))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _late(seconds: float) -> JobError:
    return JobError("image", f"the image did not come within {seconds:g} s")


def _unfetched(why: str) -> JobError:
    return JobError("image", f"the image cannot be fetched: {why}")


def _too_large(most_bytes: int) -> JobError:
    return JobError("image", f"the image is larger than {most_bytes / 1e6:g} MB")
