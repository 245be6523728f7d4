"""Fetches what a stranger names: only from public addresses, within a size and a time.

The name is resolved once, all its addresses are checked, and the connection goes to a checked address. A name that
answers differently the next time gains nothing by that. Redirects pass the same way.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from urllib.parse import quote, urljoin, urlsplit

from .failure import JobError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MOST_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Say whether an address is one of the internet's, also where it hides another."""
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if hidden is not None:
            return is_public(hidden)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


def fetch(url: str, *, most_bytes: int, seconds: float, allowed: Sequence[Network] = ()) -> bytes:
    """Return what an address holds."""
    deadline = time.monotonic() + seconds
    for _ in range(_MOST_REDIRECTS + 1):
        try:
            status, there, data = _get(url, most_bytes, deadline, allowed)
        except TimeoutError as error:
            raise JobError("image", f"the image did not come within {seconds:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise JobError("image", f"the image cannot be fetched: {type(error).__name__}") from error
        if status in _REDIRECTS and there:
            url = urljoin(url, there)
        elif status == 200:
            return data
        else:
            raise JobError("image", f"the image cannot be fetched: its host answered {status}")
    raise JobError("image", f"the image cannot be fetched: more than {_MOST_REDIRECTS} redirects")


def _get(url: str, most_bytes: int, deadline: float, allowed: Sequence[Network]) -> tuple[int, str, bytes]:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise JobError("image", "the image cannot be fetched: only http and https addresses are")
    if parts.username or parts.password:
        raise JobError("image", "the image cannot be fetched: its address holds a user name or a password")
    host = parts.hostname.encode("idna").decode("ascii") if ":" not in parts.hostname else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 80)
    opened = _connect(host, port, deadline, allowed)
    try:
        if parts.scheme == "https":
            opened = ssl.create_default_context().wrap_socket(opened, server_hostname=host)
        connection = http.client.HTTPConnection(host, port)
        connection.sock = opened
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
            f"?{quote(parts.query, safe='/%:@!$&()*+,;=~?')}" if parts.query else ""
        )
        default = 443 if parts.scheme == "https" else 80
        shown = (f"[{host}]" if ":" in host else host) + (f":{port}" if port != default else "")
        connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        for name, value in (
            ("Host", shown),
            ("User-Agent", "wanmetal"),
            ("Accept", "image/*"),
            ("Connection", "close"),
        ):
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        data = _read(response, opened, most_bytes, deadline) if response.status == 200 else b""
        return response.status, response.headers.get("Location", ""), data
    finally:
        opened.close()


def _connect(host: str, port: int, deadline: float, allowed: Sequence[Network]) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise JobError("image", "the image cannot be fetched: the name of its host is not known") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not all(is_public(address) or any(address in network for network in allowed) for address in addresses):
        raise JobError("image", "the image cannot be fetched: its host is not on the public internet")
    last: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((str(address), port), timeout=_left(deadline))
        except TimeoutError:
            raise
        except OSError as error:
            last = error
    raise last


def _read(response: http.client.HTTPResponse, opened: socket.socket, most_bytes: int, deadline: float) -> bytes:
    if int(response.headers.get("Content-Length") or 0) > most_bytes:
        raise _too_large(most_bytes)
    data = bytearray()
    opened.settimeout(_left(deadline))
    while part := response.read1(1 << 16):
        data += part
        if len(data) > most_bytes:
            raise _too_large(most_bytes)
        opened.settimeout(_left(deadline))
    if response.length:
        raise http.client.IncompleteRead(bytes(data[:0]))
    return bytes(data)


def _too_large(most_bytes: int) -> JobError:
    return JobError("image", f"the image is larger than {most_bytes / 1e6:g} MB")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
