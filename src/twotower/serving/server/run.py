"""Processes that listen, and what they share."""

import os
import socket
import sys
import tempfile
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from twotower.errors import JournalError
from twotower.runtime import library
from twotower.serving.bundle import check_bundle
from twotower.serving.retriever import Retriever
from twotower.serving.server.journal import Journal, JournalReader
from twotower.serving.server.pointer import Pointer, digest_of
from twotower.serving.server.settings import ServerSettings
from twotower.serving.server.telemetry import LOG, log_to_stderr

SECONDS_TO_FINISH = 10
"""How long requests may still take once the server was told to stop."""
APP = "twotower.serving.server.app"
SETTINGS = "TWOTOWER_SERVER_SETTINGS"
"""Environment variable by which worker processes get their settings."""
FIGURES = "PROMETHEUS_MULTIPROC_DIR"


def serve(settings: ServerSettings) -> None:
    """Listen until told to stop (SIGINT or SIGTERM); requests under way are then finished.

    Args:
        settings: Of the server.

    Raises:
        MissingExtraError: The extra ``serve`` is not installed.
        BundleError: The bundle cannot be opened.
    """
    uvicorn = library("uvicorn", wanted_by="serve", extra="serve")
    for name in ("fastapi", "orjson", "prometheus_client"):
        library(name, wanted_by="serve", extra="serve")
    journal = settings.journal or f"{Path(settings.bundle)}.journal"
    if Path(journal).is_file():
        # A file that cannot be read is refused here, and not by each worker.
        JournalReader(journal).close()
        if settings.token is not None:
            log_to_stderr()
            _compact(journal)
    settings = replace(settings, journal=journal)
    options: dict[str, Any] = {
        "factory": True,
        "host": settings.host,
        "port": settings.port,
        "workers": settings.workers,
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": False,  # nothing asks who the client is
        "timeout_graceful_shutdown": SECONDS_TO_FINISH,
    }
    check_bundle(Path(settings.bundle))
    if settings.workers == 1:
        os.environ[SETTINGS] = settings.to_json()
        uvicorn.run(f"{APP}:from_environment", **options)
        return
    Retriever.open(
        settings.bundle
    )  # what cannot be opened is told once, not by each worker for ever
    with tempfile.TemporaryDirectory(prefix="twotower-") as shared:
        (Path(shared) / "figures").mkdir()
        os.environ[FIGURES] = str(Path(shared) / "figures")
        pointer = str(Path(shared) / "model.json")
        bundle = Path(settings.bundle).resolve()
        Pointer(str(bundle), digest_of(bundle), 0).write(pointer)
        settings = replace(settings, pointer=pointer)
        os.environ[SETTINGS] = settings.to_json()
        _run_several(uvicorn, options)


def _compact(journal: str) -> None:
    """Compact a journal; where that is not possible, the server starts with the journal as it is."""
    try:
        opened = Journal(journal)
    except JournalError:
        return  # it can be read; each worker logs why it cannot be written
    try:
        opened.compact()
    except JournalError as error:
        LOG.warning("the journal was not compacted", extra={"fields": {"error": str(error)}})
    finally:
        opened.close()


class OwnSocket(socket.socket):
    """A socket of one address for each process that it is handed to.

    Processes that listen at one socket leave it to chance who accepts: whoever wakes first may take all
    connections that come at once. Of several sockets of one address Linux picks one by the connection.
    """

    @staticmethod
    def bound(host: str, port: int) -> "OwnSocket":
        """Return one, bound and not listening yet."""
        own = OwnSocket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind((host, port))
        own.set_inheritable(True)
        return own

    def __reduce__(self) -> tuple[Any, ...]:
        host, port = self.getsockname()[:2]
        return OwnSocket.bound, (host, port)


def _run_several(uvicorn: ModuleType, options: dict[str, Any]) -> None:
    """Do what ``uvicorn.run`` does with several workers, each with a socket of its own where that helps."""
    config = uvicorn.Config(f"{APP}:from_environment", **options)
    listener = config.bind_socket()  # which says so where the address is taken
    if sys.platform == "linux":
        host, port = listener.getsockname()[:2]
        listener.close()
        listener = OwnSocket.bound(host, port)
    supervisor = library("uvicorn.supervisors", wanted_by="serve", extra="serve").Multiprocess
    told = (
        {"target": uvicorn.Server(config).run}
        if "target" in signature(supervisor).parameters
        else {}
    )
    supervisor(config, sockets=[listener], **told).run()
