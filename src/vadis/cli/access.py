"""Who may connect, from the flags of `serve`, `live` and `view`."""

import os

from vadis.access import Access, is_loopback
from vadis.cli.common import say


def access_from(
    host: str, port: int, token: str | None = None, hosts: tuple[str, ...] = (), origins: tuple[str, ...] = ()
) -> Access:
    """The rule; the token is taken from VADIS_TOKEN when no flag gives one. Warns of a server that is open to all."""
    token = token or os.environ.get("VADIS_TOKEN") or None
    access = Access.at(host, token, hosts, origins)
    if not is_loopback(host) and token is None:
        say(f"warning: anyone who reaches {host}:{port} can use this server; --token asks for a password.")
    return access
