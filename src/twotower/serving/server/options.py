"""The settings of a server."""

import re
from dataclasses import dataclass, field
from typing import Any

from twotower.caller import argument
from twotower.errors import ConfigError

ANY_HOST = "*"
"""Among the allowed hosts: any name is allowed."""
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.I)


def _option(default: Any, said: str, *, is_secret: bool = False) -> Any:
    """Return a field that is also an option of the command line, with the same name."""
    return field(default=default, repr=not is_secret, metadata={"help": said})


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of a server.

    Args:
        bundle: The folder of the bundle.
        host: The address to listen on.
        port: The port to listen on, in 0..65535; 0 is any free port.
        workers: The number of processes, at least 1.
        batch: Most queries in one batch, at least 1.
        waiting: Requests that may wait for the model in a worker, at least ``batch``. Others are refused
            with 429.
        timeout: Seconds after which a request without an answer is refused with 503, above 0.
        max_k: Most items in an answer, at least 1.
        max_body: Most bytes in the body of a request, at least 1,024.
        origins: Origins whose pages may send requests from a browser.
        allowed_hosts: Names that the ``Host`` header of a request may have, besides ``localhost``, ``host``
            and IP addresses; ``*`` allows any name.
        token: The token that a request needs to write; None refuses writes.
        read_token: The token that a request needs to read; None allows everyone.
        journal: The file of catalogue changes; None for no changes.
        pointer: The file that names the bundle of all workers after an exchange; None for one worker.

    Raises:
        ConfigError: A number is out of its range.
    """

    bundle: str
    host: str = _option("127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
    port: int = _option(8000, "Port to listen on.")
    workers: int = _option(1, "Processes that answer.")
    batch: int = _option(64, "Queries answered at once at most.")
    waiting: int = _option(256, "Requests that may wait; then 429.")
    timeout: float = _option(2.0, "Seconds until an answer; then 503.")
    max_k: int = _option(1000, "Largest k.")
    max_body: int = _option(2**20, "Bytes of a body at most; then 413.")
    origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    token: str | None = _option(
        None, "Token to write with; better by the variable.", is_secret=True
    )
    read_token: str | None = _option(None, "Token to read with.", is_secret=True)
    pointer: str | None = None
    journal: str | None = None

    def __post_init__(self) -> None:
        bounds = {"port": 0, "workers": 1, "batch": 1, "waiting": 1, "max_k": 1, "max_body": 1024}
        for name, least in bounds.items():
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{argument(name)} must be at least {least}, got {value}.")
        if self.waiting < self.batch:
            raise ConfigError(
                f"{argument('waiting')} must be at least {argument('batch')}, {self.batch}, "
                f"got {self.waiting}."
            )
        if self.port > 65535:
            raise ConfigError(f"{argument('port')} must be at most 65535, got {self.port}.")
        if not 0 < self.timeout < float("inf"):
            raise ConfigError(
                f"{argument('timeout')} must be above 0 and finite, got {self.timeout:g}."
            )
        for host in self.allowed_hosts:
            if host != ANY_HOST and not _NAME.fullmatch(host):
                raise ConfigError(
                    f"{argument('allowed_hosts')} must be host names without a port, "
                    f"separated by commas, got {host!r}."
                )
        for name in ("token", "read_token"):
            if getattr(self, name) == "":
                raise ConfigError(
                    f"{argument(name)} must not be empty, got ''; leave it out where there is none."
                )
