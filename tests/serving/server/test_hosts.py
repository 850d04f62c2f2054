"""The names under which a server answers: others may be those of a page that had its own name rebound."""

from typing import Any

import pytest

from twotower.errors import ConfigError
from twotower.serving.server.gate import Hosts
from twotower.serving.server.options import ServerSettings


def status(*hosts: str, version: str = "1.1", **settings: Any) -> int:
    """Return the status for a request with these ``Host`` headers; 200 where it is let in."""
    given = ServerSettings(bundle="model", **settings)
    headers = [(b"accept", b"*/*"), *((b"host", host.encode()) for host in hosts)]
    refusal = Hosts(given).refusal({"headers": headers, "http_version": version})
    return 200 if refusal is None else refusal[0]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LocalHost.:8000",
        "127.0.0.1",
        "127.0.0.1:8000",
        "10.1.2.3",
        "8.8.8.8:",
        "[::1]",
        "[::1]:8000",
        "[2001:DB8::1]:80",
        "[::ffff:127.0.0.1]",
    ],
)
def test_loopback_and_addresses_are_let_in(host: str) -> None:
    assert status(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "xlocalhost",
        "evil.example:8000",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "1.2.3.4.5",
        "[::1",
        "::1",
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert status(host) in (400, 421)
    assert status(host, version="1.0") in (400, 421)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost/",
        "localhost@evil.example",
        "localhost:80:80",
        "localhost:x",
        "localhost evil.example",
        "localhost,evil.example",
        "[zz]",
        "[127.0.0.1]:x",
        "local\u0137ost",
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    assert status(host) in (400, 421)
    assert status(host, allowed_hosts=("*",)) in (400, 200 if host == "[zz]" else 400)


def test_there_is_one_host() -> None:
    assert status() == 400
    assert status(version="1.0") == 200
    assert status("localhost", "localhost") == 400
    assert status("localhost", "evil.example", version="1.0") == 400


def test_names_of_its_own_are_let_in() -> None:
    own: dict[str, Any] = {"allowed_hosts": ("Api.Example.com", "search.example.com.")}
    for host in (
        "api.example.com",
        "API.example.COM:443",
        "api.example.com.",
        "search.example.com",
    ):
        assert status(host, **own) == 200, host
    assert status("example.com", **own) == 421
    assert status("x.api.example.com", **own) == 421
    assert status("localhost", **own) == 200
    assert status("box.lan:8000", host="box.lan") == 200
    assert status("box.lan:8000") == 421
    assert status("anything", allowed_hosts=("*",)) == 200


@pytest.mark.parametrize("name", ["a:80", "http://a", "a/b", "", "*.a", "a..b", "ü"])
def test_a_name_that_is_none_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts must be host names without a port"):
        ServerSettings(bundle="model", allowed_hosts=(name,))
