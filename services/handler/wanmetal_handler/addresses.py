"""Which addresses are the public internet's. What a stranger names is connected to there alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Networks(tuple[Network, ...]):
    """Networks, from a text with blanks between them."""

    def __new__(cls, text: str = "") -> Networks:
        """Read them, and fail where one is none."""
        return super().__new__(cls, map(ipaddress.ip_network, text.split()))


NO_NETWORKS = Networks()

_INTERNET = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Listed here, since what the library takes for the internet's differs between versions of Python.
_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
]
# What clouds tell their machines, keys among it. No setting allows these.
_METADATA = [
    ipaddress.ip_address(text)
    for text in ("100.100.100.200", "168.63.129.16", "169.254.169.254", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")
]


def is_public(address: Address) -> bool:
    """Say whether an address is one of the internet's, also where it hides another."""
    if isinstance(address, ipaddress.IPv6Address):
        if hidden := address.ipv4_mapped:
            return is_public(hidden)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _INTERNET:
            return False
    return address.is_global and address not in _METADATA and not any(address in network for network in _NOT_PUBLIC)


def reachable(address: Address, allowed: Sequence[Network]) -> bool:
    """Say whether an address may be connected to."""
    return is_public(address) or (address not in _METADATA and any(address in network for network in allowed))
