"""Who a client is behind proxies: its address as the last of the trusted ones reports it."""

import ipaddress
from collections.abc import Sequence

from vadis.access import Headers, header_values
from vadis.errors import VadisError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1")


class Proxies:
    """Proxies that are believed."""

    def __init__(self, trusted: Sequence[str]) -> None:
        """`trusted`: addresses or networks; loopback is always among them. Raises VadisError for what is neither."""
        self._networks = [_network(text) for text in (*LOOPBACK_NETWORKS, *trusted)]

    def client(self, peer: str, headers: Headers) -> str:
        """The address of who asks: `peer`, or what trusted proxies say of whom they pass on.

        Each proxy adds at the end whom it heard, and a client may have written anything before: so what counts is the last
        address that is no trusted proxy itself. Of X-Forwarded-For and Forwarded a proxy writes one and may let the other
        through as the client sent it; where both stand and disagree, neither is believed.
        """
        if not self._trusts(_address(peer)):
            return peer
        ways = [way for way in (_x_forwarded_for(headers), _forwarded(headers)) if way]
        found = {self._last_stranger(peer, way) for way in ways}
        return found.pop() if len(found) == 1 else peer

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)

    def _last_stranger(self, peer: str, way: Sequence[str]) -> str:
        client = peer
        for entry in reversed(way):
            address = _address(entry)
            if address is None:  # "unknown", or nonsense: the proxy behind it is the last that we know
                return client
            client = str(address)
            if not self._trusts(address):
                break
        return client


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise VadisError(
            f"--trust-proxy {text}: give a proxy's address or network, such as 10.0.0.5 or 10.0.0.0/8."
        ) from None


def _address(text: str) -> Address | None:
    """The address in `1.2.3.4`, `1.2.3.4:567`, `::1` or `[::1]:567`; IPv4 in an IPv6 dress as IPv4."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address


def _x_forwarded_for(headers: Headers) -> list[str]:
    return [entry for line in header_values(headers, "x-forwarded-for") for entry in line.split(",")]


def _forwarded(headers: Headers) -> list[str]:
    """The `for` of each hop (RFC 7239); a hop without one is unknown."""
    hops = []
    for line in header_values(headers, "forwarded"):
        for element in line.split(","):
            pairs = (pair.partition("=") for pair in element.split(";"))
            hops.append(next((value for name, _, value in pairs if name.strip().lower() == "for"), "unknown"))
    return hops
