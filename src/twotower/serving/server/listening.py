"""The sockets at which a server listens."""

import errno
import socket
import sys

from twotower.caller import argument
from twotower.errors import ConfigError
from twotower.serving.server.telemetry import LOG

HAS_OWN_SOCKETS = sys.platform == "linux"
"""Whether each worker listens at a socket of its own.

Among processes that share a socket, the first that wakes may take all connections that come at once. If
several sockets have one address, Linux distributes the connections among them.
"""


def bound(host: str, port: int, *, several: bool) -> list[socket.socket]:
    """Return a socket for each address of a host, bound and not listening yet.

    Args:
        host: A name or an address.
        port: 0 for any that is free.
        several: Whether other processes bind the same address.

    Raises:
        ConfigError: The host has no address here, or the port is taken.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            if sockets and not port:  # the other addresses take the port that the first one got
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            own = _bound(family, address, several)
            if own is not None:
                sockets.append(own)
        if sockets:
            return sockets
        said = "this machine has no such address"
    except OSError as error:  # of a name as well as of a port
        said = error.strerror or str(error)
    for each in sockets:
        each.close()
    raise ConfigError(
        f"{argument('host')} and {argument('port')} must be an address to listen at, got "
        f"{address_of(host, port)}: {said}; "
        f"choose another {argument('port')}, or stop what listens there."
    )


def address_of(host: str, port: int) -> str:
    """Return an address as it is written in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def tell_address(sockets: list[socket.socket]) -> None:
    """Write down where the server listens."""
    for each in sockets:
        host, port = each.getsockname()[:2]
        LOG.info("listening", address=f"http://{address_of(host, port)}")


def _bound(
    family: socket.AddressFamily, address: tuple[object, ...], several: bool
) -> socket.socket | None:
    """Return a bound socket; None if this machine does not have the address."""
    try:
        own = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None  # a system without IPv6
    try:
        if sys.platform != "win32":
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if several and sys.platform == "linux":
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        own.bind(address)
        own.setblocking(False)
    except OSError as error:
        own.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return own
