"""A process that answers requests: alone, or as one of several workers of a supervisor."""

import asyncio
import os
import pickle
import sys
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socket

import torch
import uvicorn

from twotower.caller import called_from
from twotower.errors import BundleError, TwoTowerError
from twotower.serving.manifest import check_bundle
from twotower.serving.server.app import create_app
from twotower.serving.server.connections import GuardedProtocol
from twotower.serving.server.descriptors import MOST_CONNECTIONS, most_accepted
from twotower.serving.server.listening import bound, tell_address
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.pointer import Pointer, digest_of
from twotower.serving.server.telemetry import LOG, log_to_stderr
from twotower.serving.server.worker_signs import ALIVE, EXIT_FAILED, FAILED

SECONDS_TO_FINISH = 10
"""How long requests may still take once the server was told to stop."""
EXIT_ORPHANED = 4
_SECONDS_BETWEEN_SIGNS = 0.5
_SECONDS_AS_ORPHAN = 0.7


class Server(uvicorn.Server):
    """A server that ends when it can no longer listen, and knows when its loop last moved.

    Args:
        settings: The settings of the server.

    Raises:
        BundleError: The bundle cannot be opened.
    """

    def __init__(self, settings: ServerSettings) -> None:
        # Workers share the cores, and the thread that speaks HTTP wants one of each worker's.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // settings.workers - 1))
        super().__init__(
            uvicorn.Config(
                create_app(settings),
                http=GuardedProtocol,
                ws="none",  # no route uses websockets, and they would not have our limits
                workers=settings.workers,
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,  # nothing asks who the client is
                backlog=most_accepted(),
                timeout_graceful_shutdown=SECONDS_TO_FINISH,
            )
        )
        self.moved_at: float | None = None
        """When the loop last moved, by the monotonic clock; None before the server listens."""
        self.is_deaf = False

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        # ``backlog`` is also how many asyncio accepts before it does anything else.
        for each in sockets or ():
            each.listen(MOST_CONNECTIONS)

    async def on_tick(self, counter: int) -> bool:
        """Check ten times a second whether the server must end."""
        self.moved_at = time.monotonic()
        # The loop closes a listening socket when the system has no descriptor left for a connection.
        if not self.should_exit and not all(server.sockets for server in self.servers):
            LOG.error("the listening socket was closed; the server ends, to be started anew")
            self.is_deaf = self.should_exit = True
        return await super().on_tick(counter)


def run_alone(settings: ServerSettings) -> None:
    """Answer from this process alone.

    Args:
        settings: The settings of the server.

    Raises:
        BundleError: The bundle cannot be opened.
        ConfigError: The server cannot listen at this host and port.
        SystemExit: It could not start, or not go on, for a reason that the log names.
    """
    log_to_stderr()
    with ExitStack() as closes:
        sockets = bound(settings.host, settings.port, several=False)
        for each in sockets:
            closes.enter_context(each)
        server = Server(settings)
        tell_address(sockets)
        # Requests name arguments as Python does. When Ctrl-C shows, the server has finished.
        with called_from("python"), suppress(KeyboardInterrupt):
            server.run(sockets)
    if server.is_deaf or not server.started:
        sys.exit(EXIT_FAILED)


@called_from("command line")  # it is a process of its own
def work(
    settings: ServerSettings, sockets: list[socket] | list[tuple[str, int]], line: Connection
) -> None:
    """Answer as one of several workers, and end when the supervisor is gone.

    Args:
        settings: The settings of the server.
        sockets: The sockets to listen at; or their addresses, if each worker has sockets of its own.
        line: The line to the supervisor.
    """
    log_to_stderr()
    try:
        with _Sign(line) as sign:
            bundle = Path(settings.bundle).resolve()
            assert settings.pointer is not None
            if Pointer.read(settings.pointer) is None:
                try:
                    digest = digest_of(bundle)
                except OSError as error:
                    check_bundle(bundle)  # says what is wrong with it
                    raise BundleError(f"the bundle {str(bundle)!r} cannot be read.") from error
                Pointer(str(bundle), digest, 0).write_first(settings.pointer)
            own: list[socket] = []
            for given in sockets:
                own += [given] if isinstance(given, socket) else bound(*given, several=True)
            sign.server = server = Server(settings)
            with called_from("python"):  # as requests name arguments
                server.run(own)
    except TwoTowerError as error:
        error.add_note(f"In a worker:\n{traceback.format_exc()}")  # pickling leaves the trace out
        line.send_bytes(FAILED + pickle.dumps(error))
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    except Exception:
        LOG.exception("the worker failed")
    else:
        if server.started and not server.is_deaf:
            return
    sys.exit(EXIT_FAILED)


class _Sign:
    """Tells the supervisor that the loop still moves, and ends the process when the supervisor is gone.

    The system closes the supervisor's end of the line however the supervisor ends.
    """

    def __init__(self, line: Connection) -> None:
        self.server: Server | None = None
        self._line = line
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="twotower-supervisor", daemon=True)

    def __enter__(self) -> "_Sign":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _keep(self) -> None:
        told_at = None
        try:
            while not self._is_over.is_set():
                if self._line.poll(_SECONDS_BETWEEN_SIGNS):
                    self._line.recv_bytes()  # raises: the supervisor says nothing
                moved_at = None if self.server is None else self.server.moved_at
                if moved_at != told_at:
                    told_at = moved_at
                    self._line.send_bytes(ALIVE)
        except (EOFError, OSError):
            LOG.error("the supervising process is gone; this worker ends")
            if self.server is not None:
                self.server.should_exit = True
            time.sleep(_SECONDS_AS_ORPHAN)
            os._exit(EXIT_ORPHANED)
