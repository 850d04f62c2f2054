"""The host names to which a server answers.

Any site can let its own name point at this machine (DNS rebinding). A browser then lets the pages of that
site read the answers of this server. It sends the name as ``Host``, so the server refuses unknown names. An
IP address cannot be rebound, so the server accepts all of them.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from starlette.types import Scope

from twotower.serving.server.options import ANY_HOST, ServerSettings

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{0,5})?", re.I)


class Hosts:
    """The names that one server answers to.

    Args:
        settings: The settings of the server: ``allowed_hosts``, and the name in ``host``.
    """

    def __init__(self, settings: ServerSettings) -> None:
        names = ("localhost", settings.host, *settings.allowed_hosts)
        self._names = {name.lower().removesuffix(".") for name in names}

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return a status and a sentence for a request to an unknown name; None if the name is known."""
        given = [value for name, value in scope["headers"] if name == b"host"]
        if len(given) == 1:
            return self._check(given[0])
        if not given and scope.get("http_version") == "1.0":  # it knew no such header
            return None
        return 400, f"the request must have one Host header, got {len(given) or 'none'}."

    def _check(self, header: bytes) -> tuple[int, str] | None:
        text = header.decode("latin-1").strip()
        found = _HOST.fullmatch(text)
        if found is None:
            return 400, f"the Host header must be a name or an address, got {text[:80]!r}."
        name = found["name"].lower().removesuffix(".")
        if ANY_HOST in self._names or name in self._names or _is_address(name):
            return None
        return 421, (
            f"the server does not answer to the name {name[:80]!r}; start it with "
            "TWOTOWER_ALLOWED_HOSTS=NAME."
        )


def _is_address(name: str) -> bool:
    """Return whether a host is an IP address; IPv6 has brackets."""
    try:
        if name.startswith("["):
            IPv6Address(name[1:-1])
        else:
            IPv4Address(name)
    except AddressValueError:
        return False
    return True
