"""Who may connect to a server or page of vadis: by the Host and Origin of a request, and by its token.

A browser lets every page in the world send requests to this machine. What betrays such a page is its Origin, and, when it
reaches us by a name of its own that it pointed at this machine (DNS rebinding), the Host.
"""

import hmac
import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, quote

from vadis.errors import VadisError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESS = ("0.0.0.0/0", "::/0")
"""Hosts that are IP addresses, which no stranger's page can have for a name."""
_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?)(?::(\d{1,5}))?")
_PORTS = {"http": 80, "https": 443}
Headers = Sequence[tuple[str, str]]
"""Names in lower case, values; a name may come twice."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused: an HTTP status, a word for programs, a sentence for people."""

    status: int
    code: str
    message: str


@dataclass(frozen=True)
class Access:
    """The rule itself.

    Args:
        token: asked for as `Authorization: Bearer TOKEN`, or as `?token=` where no header can be set.
        hosts: names by which the server may be addressed, IP networks such as 192.168.0.0/16; * for all.
        origins: web origins that may connect beside the server's own, such as https://example.org; * for all.

    Raises VadisError for a host or an origin that is neither.
    """

    token: str | None = None
    hosts: tuple[str, ...] = LOOPBACK
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for host in self.hosts:
            if host != "*" and _network(host) is None and _name(host) is None:
                raise VadisError(f"--allow-host {host}: give a name without a port, such as motion.example.org, or *.")
        for origin in self.origins:
            if origin != "*" and _origin(origin) is None:
                raise VadisError(f"--origin {origin}: give a web origin such as https://example.org, or * for all.")

    @staticmethod
    def at(host: str, token: str | None = None, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> "Access":
        """The rule of a server that listens on `host`; `hosts` are further names.

        On loopback only its own names are good. Elsewhere a token decides alone; without one, IP addresses and this
        machine's name are good, since any other name may be a stranger's.
        """
        if is_loopback(host):
            names = LOOPBACK if host in LOOPBACK else (*LOOPBACK, host)
        elif token:
            names = ("*",)
        else:
            own = socket.gethostname().lower()
            names = (*LOOPBACK, *ANY_ADDRESS, *((own, f"{own}.local") if _name(own) else ()))
        return Access(token, (*names, *hosts), tuple(origins))

    def foreign(self, headers: Headers) -> Refusal | None:
        """Why a request comes from a stranger's page; None when it doesn't. What is no browser sends no Origin, and passes."""
        hosts, origins = header_values(headers, "host"), header_values(headers, "origin")
        host = _split(hosts[0]) if len(hosts) == 1 else None
        if host is None or not self._addressed(host[0]):
            known = ", ".join(name for name in self.hosts if name not in ANY_ADDRESS)
            return Refusal(403, "host", f"this server is addressed as {known}; --allow-host adds a name.")
        if not origins or "*" in self.origins:
            return None
        origin = _origin(origins[0]) if len(origins) == 1 else None
        if origin is not None:
            scheme, *place = origin
            own = scheme in _PORTS and place == [host[0], host[1] or _PORTS[scheme]]
            if own or origin in map(_origin, self.origins):
                return None
        return Refusal(403, "origin", "pages of this origin may not connect; --origin lets them.")

    def _addressed(self, name: str) -> bool:
        if "*" in self.hosts or any(name == _name(host) for host in self.hosts):
            return True
        address = _ip(name)
        return address is not None and any(net is not None and address in net for net in map(_network, self.hosts))

    def authorized(self, headers: Headers, query: str = "") -> bool:
        """Whether a request has the token, where there is one. `query`: of the address, when that may carry it."""
        if self.token is None:
            return True
        bearers = [value[7:] for value in header_values(headers, "authorization") if value[:7].lower() == "bearer "]
        given = [text.encode("latin-1") for text in bearers] + [
            text.encode() for text in parse_qs(query).get("token", [])
        ]
        return any(hmac.compare_digest(token, self.token.encode()) for token in given)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    address = _ip(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def page_url(host: str, port: int, token: str | None = None) -> str:
    """The address to open in a browser on this machine, with the token when there is one."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    return f"{url}/?token={quote(token, safe='')}" if token else url


def free_port(host: str = "127.0.0.1", port: int = 0, tries: int = 1) -> int:
    """The first of `tries` TCP ports from `port` on that nobody listens on right now; 0 takes any.

    Raises VadisError when there is none, or `host` is no address of this machine.
    """
    problem: OSError | None = None
    for candidate in range(port, min(port + tries, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                if os.name == "posix":  # a port that was in use a moment ago is free; on Windows it means another thing
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, candidate))
                return int(probe.getsockname()[1])
            except OSError as error:
                problem = error
    reason = "no port is left" if problem is None else problem.strerror or problem
    raise VadisError(f"can't listen on {host}:{port} ({reason}): choose another --port or --host.")


def header_values(headers: Headers, wanted: str) -> list[str]:
    """The values of a header, one for each of its lines."""
    return [value for name, value in headers if name == wanted]


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text) if "/" in text else None
    except ValueError:
        return None


def _split(text: str) -> tuple[str, int | None] | None:
    """Name and port of what a Host header has, as `localhost:8000` or `[::1]`; None for anything else."""
    match = _HOST.fullmatch(text.lower())
    if match is None:
        return None
    address, name, port = match.groups()
    if address is not None:
        if (parsed := _ip(address)) is None:
            return None
        name = str(parsed)  # the short one of an address's many forms
    return name, None if port is None else int(port)


def _name(host: str) -> str | None:
    """A configured host as `_split` gives it; None for what is no name, or has a port."""
    found = _split(f"[{host}]" if _ip(host) is not None and ":" in host else host)
    return None if found is None or found[1] is not None else found[0]


def _origin(text: str) -> tuple[str, str, int] | None:
    """Scheme, name and port of an origin; None for what is none, and for `null`, which any page can have."""
    scheme, mark, rest = text.strip().lower().partition("://")
    found = _split(rest.removesuffix("/"))
    return None if not mark or found is None else (scheme, found[0], found[1] or _PORTS.get(scheme, 0))
