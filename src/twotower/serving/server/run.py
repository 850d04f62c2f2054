"""Starts the processes that listen, and what they share.

This module and those that it imports do without torch, so that the process that only looks after workers
stays small and is ready at once.
"""

import os
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from twotower.serving.abandoned import make_owned, sweep
from twotower.serving.server.descriptors import raise_limit
from twotower.serving.server.settings import ServerSettings

LIBRARIES = ("uvicorn", "httptools", "fastapi", "orjson", "prometheus_client")
FIGURES = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder in which the workers count together."""
_PREFIX = "twotower-"
"""Beginning of the names of the folders that workers share."""


def serve(settings: ServerSettings) -> None:
    """Listen until told to stop (SIGINT or SIGTERM); requests under way are then finished.

    Args:
        settings: Of the server.

    Raises:
        MissingExtraError: The extra ``serve`` is not installed.
        BundleError: The bundle cannot be opened.
        ConfigError: The server cannot listen at this host and port.
        SystemExit: A worker failed for another reason, which the log names.
    """
    for name in LIBRARIES:
        if find_spec(name) is None:
            from twotower.runtime import library

            library(name, wanted_by="serve", extra="serve")  # raises
    from twotower.serving.server.journal import Journal

    journal = settings.journal or f"{Path(settings.bundle)}.journal"
    if Path(journal).is_file():
        opened = Journal(journal)
        opened.compact()
        opened.close()
    settings = replace(settings, journal=journal)
    raise_limit()
    sweep(Path(tempfile.gettempdir()), f"{_PREFIX}*")
    if settings.workers == 1:
        from twotower.serving.server.worker import run_alone

        run_alone(settings)
        return
    from twotower.serving.server.supervisor import Supervisor

    with make_owned(Path(tempfile.gettempdir()), _PREFIX) as shared:
        (shared.path / "figures").mkdir()
        os.environ[FIGURES] = str(shared.path / "figures")
        Supervisor(replace(settings, pointer=str(shared.path / "model.json"))).run()
