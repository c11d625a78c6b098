"""Who may connect: names, origins and tokens, each by itself."""

import socket

import pytest

from vadis.access import Access, free_port, page_url
from vadis.cli.access import access_from
from vadis.errors import VadisError


def headers(host: str | None = "127.0.0.1:8000", *origins: str) -> list[tuple[str, str]]:
    return [("host", host)] * (host is not None) + [("origin", origin) for origin in origins]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LocalHost", "localhost.", "localhost.:80", "[::1]", "[::1]:8000",
     "[0:0:0:0:0:0:0:1]:8000"],
)  # fmt: skip
def test_loopback_names(host: str) -> None:
    assert Access().foreign(headers(host)) is None


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.2", "::1",
     "[::2]", "[localhost]", "localhost:8000@evil.example", "evil.example/localhost", "localhost:port", "localhost..",
     "localhost ", "[" * 9, "localhost,evil.example", "*", "0.0.0.0", "localhost:123456"],
)  # fmt: skip
def test_other_names(host: str | None) -> None:
    refusal = Access().foreign(headers(host))
    assert refusal is not None and (refusal.status, refusal.code) == (403, "host")


def test_a_second_host_or_origin_is_refused() -> None:
    assert Access().foreign(headers() + headers()) is not None
    assert Access(hosts=("*",)).foreign(headers() + headers("evil.example")) is not None
    assert Access().foreign(headers("127.0.0.1:8000", "http://127.0.0.1:8000", "https://evil.example")) is not None


@pytest.mark.parametrize(
    ("host", "origin", "good"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", True), ("LOCALHOST:8000", "HTTP://localhost:8000", True),
        ("localhost", "http://localhost", True), ("localhost:80", "http://localhost", True),
        ("localhost", "https://localhost", True), ("[::1]:8000", "http://[::1]:8000", True),
        ("127.0.0.1:8000", "http://127.0.0.1:8001", False), ("127.0.0.1:8000", "http://127.0.0.1", False),
        ("127.0.0.1:8000", "http://localhost:8000", False), ("127.0.0.1:8000", "https://evil.example", False),
        ("127.0.0.1:8000", "null", False), ("127.0.0.1:8000", "", False), ("127.0.0.1:8000", "file://", False),
        ("127.0.0.1:8000", "http://127.0.0.1:8000@evil.example", False), ("127.0.0.1:8000", "//127.0.0.1:8000", False),
        ("127.0.0.1:8000", "app://127.0.0.1:8000", False), ("127.0.0.1:8000", "http://127.0.0.1:8000, null", False),
    ],
)  # fmt: skip
def test_origins(host: str, origin: str, good: bool) -> None:
    refusal = Access().foreign(headers(host, origin))
    assert (refusal is None) is good
    assert refusal is None or (refusal.status, refusal.code) == (403, "origin")
    assert Access(origins=("*",)).foreign(headers(host, origin)) is None


def test_origins_that_are_let_in() -> None:
    access = Access(origins=("https://Example.org/", "chrome-extension://abcdef"))
    for good in ("https://example.org", "https://example.org:443", "chrome-extension://abcdef"):
        assert access.foreign(headers("localhost", good)) is None
    for wrong in ("http://example.org", "https://www.example.org", "https://example.org:8443", "null"):
        assert access.foreign(headers("localhost", wrong)) is not None


@pytest.mark.parametrize(
    "wrong", ["example.org", "https://", "null", "https://example.org/page", "https://user@example.org"]
)
def test_origins_that_are_none_are_said(wrong: str) -> None:
    with pytest.raises(VadisError, match="--origin"):
        Access(origins=(wrong,))


@pytest.mark.parametrize("wrong", ["", "http://example.org", "example.org:80", "a b", "*.example.org", "1.2.3.4/99"])
def test_hosts_that_are_none_are_said(wrong: str) -> None:
    with pytest.raises(VadisError, match="--allow-host"):
        Access(hosts=(wrong,))


def test_the_rule_follows_the_address_that_is_listened_on() -> None:
    def lets(access: Access, *hosts: str) -> list[bool]:
        return [access.foreign(headers(host)) is None for host in hosts]

    names = ("localhost", "192.168.1.5:8000", "[fe80::1]", socket.gethostname(), "evil.example", "Motion.Example.org")
    assert lets(Access.at("127.0.0.1", hosts=("motion.example.org",)), *names) == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]
    # No stranger's page has an address for a name; without a token any other name may be one that was pointed here.
    assert lets(Access.at("0.0.0.0", hosts=("motion.example.org",)), *names) == [True, True, True, True, False, True]
    assert lets(Access.at("::", "secret"), *names) == [True] * 6
    assert lets(Access.at("127.0.0.2"), "127.0.0.2:80", "127.0.0.3") == [True, False]


def test_tokens() -> None:
    access = Access(token="secret")
    for good in ([("authorization", "Bearer secret")], [("authorization", "bearer secret")]):
        assert access.authorized(good)
    for wrong in ("secret", "Bearer wrong", "Bearer ", "Basic secret", "Bearer secret2", "Bearer s\xe9cret"):
        assert not access.authorized([("authorization", wrong)])
    assert access.authorized([], "text=walk&token=secret") and not access.authorized([], "token=")
    assert Access(token="sécret").authorized([("authorization", "Bearer s\xc3\xa9cret")])  # UTF-8 as the wire has it
    assert Access(token="sécret").authorized([], "token=s%C3%A9cret")
    assert Access().authorized([])


def test_the_token_of_the_command_line(monkeypatch, capsys) -> None:
    monkeypatch.setenv("VADIS_TOKEN", "from the environment")
    assert access_from("127.0.0.1", 1).token == "from the environment"
    assert access_from("127.0.0.1", 1, "from the flag").token == "from the flag"
    monkeypatch.delenv("VADIS_TOKEN")
    assert capsys.readouterr().err == "" and access_from("0.0.0.0", 1).token is None
    assert "anyone who reaches 0.0.0.0:1" in capsys.readouterr().err


def test_addresses_and_ports() -> None:
    assert page_url("0.0.0.0", 80) == "http://127.0.0.1:80" and page_url("::1", 80) == "http://[::1]:80"
    assert page_url("::", 80, "a&b") == "http://[::1]:80/?token=a%26b"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port, tries=50) > port
        with pytest.raises(VadisError, match=f"can't listen on 127.0.0.1:{port}.*--port or --host"):
            free_port("127.0.0.1", port)
    with pytest.raises(VadisError, match="can't listen on 192.0.2.1:0"):
        free_port("192.0.2.1")
