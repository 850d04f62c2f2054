"""Starts the processes of a server, and prepares what they share.

This module and its imports do without torch, so that the supervisor of the workers stays small and starts
at once.
"""

import os
import tempfile
from contextlib import closing, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from twotower.abandoned import sweep, temporary_folder
from twotower.errors import JournalError
from twotower.extras import library
from twotower.serving.server.descriptors import raise_limit
from twotower.serving.server.options import ServerSettings

LIBRARIES = ("uvicorn", "httptools", "fastapi", "orjson", "prometheus_client")
FIGURES = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the folder in which the workers share their figures."""


def serve(settings: ServerSettings) -> None:
    """Serve until SIGINT or SIGTERM. The current requests are then finished.

    Args:
        settings: The settings of the server.

    Raises:
        MissingExtraError: The extra ``serve`` is not installed.
        BundleError: The bundle cannot be opened.
        ConfigError: The server cannot listen at this host and port.
        SystemExit: A worker failed for another reason, which the log names.
    """
    check_libraries()
    from twotower.serving.server.journal import Journal, JournalReader, check_locks
    from twotower.serving.server.telemetry import log_to_stderr

    if settings.token is not None or settings.journal is not None:
        check_locks()
    journal = settings.journal or f"{Path(settings.bundle)}.journal"
    if Path(journal).is_file():
        JournalReader(journal).close()  # an error here is told once, and not by each worker
        if settings.token is not None:
            log_to_stderr()
            # If it cannot be opened for writing, each worker logs why.
            with suppress(JournalError), closing(Journal(journal)) as opened:
                opened.tries_to_compact()
    settings = replace(settings, journal=journal)
    raise_limit()
    for folder in (tempfile.gettempdir(), Path(settings.bundle).resolve().parent):
        sweep(Path(folder))
    if settings.workers == 1:
        from twotower.serving.server.worker import run_alone

        run_alone(settings)
        return
    from twotower.serving.server.supervisor import Supervisor

    with temporary_folder() as shared:
        (shared / "figures").mkdir()
        os.environ[FIGURES] = str(shared / "figures")
        try:
            Supervisor(replace(settings, pointer=str(shared / "model.json"))).run()
        finally:
            del os.environ[FIGURES]


def check_libraries() -> None:
    """Check that the libraries of the server are installed, without importing them.

    Raises:
        MissingExtraError: The extra ``serve`` is not installed.
    """
    for name in LIBRARIES:
        if find_spec(name) is None:
            library(name, wanted_by="serve", extra="serve")  # raises
