"""Where a server listens, and what it says where it cannot."""

import resource
import socket
import sys

import pytest

from twotower.errors import ConfigError
from twotower.serving.server import descriptors
from twotower.serving.server.listening import address_of, bound


def test_a_name_of_several_addresses_has_one_port() -> None:
    sockets = bound("localhost", 0, several=False)
    try:
        assert len({each.getsockname()[1] for each in sockets}) == 1
        assert {each.family for each in sockets} <= {socket.AF_INET, socket.AF_INET6}
    finally:
        for each in sockets:
            each.close()


@pytest.mark.parametrize("host", ["203.0.113.9", "no-such-host.invalid"])
def test_a_host_that_is_not_of_this_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=f"must be an address to listen at, got {host}:8000: "):
        bound(host, 8000, several=False)


def test_an_address_of_ipv6_stands_in_brackets() -> None:
    assert (address_of("::1", 80), address_of("127.0.0.1", 80)) == ("[::1]:80", "127.0.0.1:80")


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_as_many_descriptors_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        few = descriptors.most_connections()
        assert few < 128
        descriptors.raise_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft > 256 or soft == hard
        assert descriptors.most_connections() >= few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
