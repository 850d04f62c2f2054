"""What a server is told when it starts."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from twotower.caller import argument
from twotower.errors import ConfigError

ANY_HOST = "*"
"""Among the allowed hosts: a request may name any."""
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.I)


def _option(default: Any, said: str, *, is_secret: bool = False) -> Any:
    """Return a field that the command line has as an option of this name."""
    return field(default=default, repr=not is_secret, metadata={"help": said})


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a server listens, what it answers from, and how much it takes on.

    Args:
        bundle: Folder of the bundle.
        host: Address to listen on.
        port: In 0..65535; 0 is any that is free.
        workers: Processes, at least 1.
        batch: Queries that are answered at once at most, at least 1.
        waiting: Requests that may wait for the model in a worker, at least ``batch``; more are refused with
            429.
        timeout: Seconds after which a request without its answer is refused with 503, above 0.
        max_k: Items that an answer may hold at most, at least 1.
        max_body: Bytes of a request's body at most, at least 1,024.
        origins: Origins whose pages may ask from a browser.
        allowed_hosts: Names that the ``Host`` header of a request may hold, beside ``localhost``, ``host``
            and addresses in digits; ``*`` allows any name.
        token: What a request must bear to write; None refuses writes.
        read_token: What a request must bear to read; None lets everyone.
        journal: File of what is written to the catalogue; None where nothing can be.
        pointer: File that names the bundle that all workers answer from since it was last exchanged; None
            where no other worker is told.

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

    LEAST: ClassVar[dict[str, int]] = {
        "port": 0,
        "workers": 1,
        "batch": 1,
        "waiting": 1,
        "max_k": 1,
        "max_body": 1024,
    }

    def __post_init__(self) -> None:
        for name, least in self.LEAST.items():
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
