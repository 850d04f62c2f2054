"""Servers for tests: real ones, on loopback."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from twotower.serving.answers import Recommendation
from twotower.serving.server.listening import bound
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.worker import Server

PATIENCE = 300.0
"""Seconds that a test waits for what must happen, and that a server lets a query wait."""


@contextmanager
def running(bundle: Path, **settings: Any) -> Iterator[str]:
    """Run a server in a thread, and give its address. It refuses nothing by the clock unless told to."""
    server = Server(ServerSettings(bundle=str(bundle), **{"timeout": PATIENCE, **settings}))
    torch.set_num_threads(1)  # as all tests have it
    (listener,) = bound("127.0.0.1", 0, several=False)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    until = time.monotonic() + PATIENCE
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
        listener.close()


def said(answer: Recommendation) -> dict[str, Any]:
    """Return what an answer says; a client's knows no table of the items."""
    return {k: v for k, v in vars(answer).items() if k not in ("items", "item_column")}
