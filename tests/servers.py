"""Servers for tests: real ones, on loopback."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from twotower.serving.server.app import create_app
from twotower.serving.server.connections import GuardedProtocol
from twotower.serving.server.settings import ServerSettings

PATIENCE = 300.0
"""Seconds that a test waits for what must happen, and that a server lets a query wait."""


@contextmanager
def running(bundle: Path, **settings: Any) -> Iterator[str]:
    """Run a server in a thread, and give its address. It refuses nothing by the clock unless told to."""
    app = create_app(ServerSettings(bundle=str(bundle), **{"timeout": PATIENCE, **settings}))
    config = uvicorn.Config(
        app, port=0, log_config=None, access_log=False, http=GuardedProtocol, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + PATIENCE
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
