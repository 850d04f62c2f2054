"""The supervisor of several workers: starts them, replaces one that died or hangs, and stops them all."""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from twotower.errors import TwoTowerError
from twotower.serving.server.listening import HAS_OWN_SOCKETS, bound, tell_address
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.telemetry import LOG, log_to_stderr
from twotower.serving.server.worker_signs import EXIT_FAILED, FAILED

PRELOADED = (
    "numpy",
    "torch",
    "fastapi",
    "orjson",
    "prometheus_client",
    "safetensors.torch",
    "uvicorn",
    "uvloop",
)
"""Libraries that workers share by a fork. None of them starts a thread when it is imported, as polars does:
a thread does not survive a fork, and its locks stay locked."""
SECONDS_TO_FINISH = 12.0
"""How long a worker may take to end: longer than its requests may."""
SECONDS_TO_ANSWER = 60.0
"""After how long a worker that was ready and no longer gives a sign is replaced."""
LONGEST_PAUSE = 60.0
"""Most seconds before a worker that keeps failing is started again."""
_SECONDS_OF_A_LOOK = 0.25
_SECONDS_OF_A_LIFE = 10.0
_LONGEST_FOLDER_OF_A_SOCKET = 88  # of the 107 that Linux allows, the name takes 18
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Supervisor:
    """Keeps as many workers running as the settings say.

    Args:
        settings: The settings of the server, with a ``pointer``.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._num_told = 0
        self._places: list[_Place] = []
        assert settings.pointer is not None
        self._folder = str(Path(settings.pointer).parent)
        # In a longer folder, the socket of the process that forks could not be bound.
        is_short = len(os.fsencode(self._folder)) <= _LONGEST_FOLDER_OF_A_SOCKET
        self._can_fork = sys.platform == "linux" and is_short
        method = "forkserver" if self._can_fork else "spawn"
        self._context: Any = multiprocessing.get_context(method)

    def run(self) -> None:
        """Start the workers and look after them until a signal says to stop.

        Raises:
            BundleError: The bundle cannot be opened.
            ConfigError: The server cannot listen at this host and port.
            SystemExit: No worker is ready, and one could not start, for a reason that the log names.
        """
        log_to_stderr()
        host, port = self._settings.host, self._settings.port
        if port:  # sockets that share a port would share it with another server, too
            for each in bound(host, port, several=False):
                each.close()
        sockets = bound(host, port, several=True)
        listeners: list[Any] = sockets
        if HAS_OWN_SOCKETS:  # these hold the port, and never listen
            listeners = [each.getsockname()[:2] for each in sockets]
        with self._signals():
            try:
                if self._can_fork:
                    self._start_forks()
                tell_address(sockets)
                for _ in range(self._settings.workers):
                    self._places.append(_Place(self._context, self._settings, listeners))
                while not self._num_told:
                    self._look()
            finally:
                self._stop()
                for each in sockets:
                    each.close()

    def _start_forks(self) -> None:
        """Start the process that imports the libraries once. Each worker is a fork of it."""
        from multiprocessing import forkserver

        self._context.set_forkserver_preload(list(PRELOADED))
        # Its socket would lie in a folder of its own, which a kill would leave behind.
        vars(multiprocessing.current_process())["_config"]["tempdir"] = self._folder
        forkserver.ensure_running()

    def _look(self) -> None:
        """Wait for news of the workers, and act on it."""
        started = time.monotonic()
        wait([each for place in self._places for each in place.sources()], _SECONDS_OF_A_LOOK)
        now = time.monotonic()
        # Where this process slept itself, as in a paused container, the silence says nothing.
        has_slept = now - started > 10 * _SECONDS_OF_A_LOOK
        for place in self._places:
            place.read(now, has_slept=has_slept)
        for place in self._places:
            failure = place.tend(now)
            if failure is not None and not any(each.is_ready for each in self._places):
                raise failure

    def _stop(self) -> None:
        """End all workers. Those that do not finish in time are killed."""
        for place in self._places:
            place.process.terminate()
        until = time.monotonic() + SECONDS_TO_FINISH
        told, is_killed = self._num_told, False
        while alive := [each.process for each in self._places if each.process.is_alive()]:
            if not is_killed and (time.monotonic() > until or self._num_told > max(told, 1)):
                is_killed = True
                LOG.error("workers did not finish in time and are killed")
                for process in alive:
                    process.kill()
            wait([process.sentinel for process in alive], _SECONDS_OF_A_LOOK)
        for place in self._places:
            place.hang_up()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def told(_number: int, _frame: FrameType | None) -> None:
            self._num_told += 1

        # One that is ignored, as by nohup, stays so.
        wanted = [each for each in _SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
        before = {each: signal.signal(each, told) for each in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Place:
    """A worker, and the ones that replace it after its death."""

    def __init__(self, context: Any, settings: ServerSettings, listeners: list[Any]) -> None:
        self._context = context
        self._settings = settings
        self._listeners = listeners
        self._num_failures = 0
        self._start()

    def _start(self) -> None:
        self._line, theirs = self._context.Pipe()
        self.process: BaseProcess = self._context.Process(
            target=_work, args=(self._settings, self._listeners, theirs), name="twotower-worker"
        )
        self.process.start()
        theirs.close()
        self._error: TwoTowerError | None = None
        self._has_hung_up = self._is_killed = False
        self._seen_at: float | None = None
        self._restarts_at: float | None = None
        """When the next worker starts; None until this one has ended."""
        self._started_at = self._warned_at = time.monotonic()

    @property
    def is_ready(self) -> bool:
        """Whether the worker answers."""
        return self._seen_at is not None and self.process.is_alive()

    def sources(self) -> list[Any]:
        """Return the objects to wait for: the end of the process, and its messages."""
        if self._restarts_at is not None:
            return []
        # A line at its end is always ready, and has no message.
        return [self.process.sentinel, *([] if self._has_hung_up else [self._line])]

    def read(self, now: float, *, has_slept: bool) -> None:
        """Read the worker's messages.

        Args:
            now: By the monotonic clock.
            has_slept: Whether the supervisor slept meanwhile. The silence of a worker then counts from now.
        """
        try:
            while not self._has_hung_up and self._line.poll():
                said = self._line.recv_bytes()
                if said.startswith(FAILED):
                    self._error = pickle.loads(said.removeprefix(FAILED))
                else:
                    if self._seen_at is None:
                        self._log("the worker is ready", level=logging.INFO)
                    self._seen_at = now
        except (EOFError, OSError):
            self._has_hung_up = True  # the process ends, which its sentinel tells
        if has_slept and self._seen_at is not None:
            self._seen_at = now

    def tend(self, now: float) -> BaseException | None:
        """Start the worker again if it has died, after a pause if it keeps failing; kill it if it hangs.

        Returns:
            The reason why it could not start, if it has just died before it was ready.
        """
        if self._restarts_at is not None:
            if now >= self._restarts_at:
                self._start()
            return None
        if self.process.is_alive():
            if self._is_killed:
                return None
            if self._seen_at is not None and now - self._seen_at > SECONDS_TO_ANSWER:
                self._log("the worker gives no sign and is killed", seconds=SECONDS_TO_ANSWER)
                self.process.kill()
                self._is_killed = True
            elif self._seen_at is None and now - self._warned_at > SECONDS_TO_ANSWER:
                self._warned_at = now
                self._log("the worker is not ready yet", seconds=round(now - self._started_at))
            return None
        was_ready = self._seen_at is not None
        reason = str(self._error or _how(self.process.exitcode))
        if self._is_killed:
            reason = "it gave no sign"
        what = "the worker ended" if was_ready else "the worker ended before it was ready"
        self._log(what, reason=reason)
        self.process.join()
        self.hang_up()
        is_well = was_ready and now - self._started_at > _SECONDS_OF_A_LIFE
        self._num_failures = 0 if is_well else self._num_failures + 1
        pause = 0.0 if is_well else min(LONGEST_PAUSE, 2.0 ** (self._num_failures - 1))
        self._restarts_at = now + pause
        return None if was_ready else self._error or SystemExit(EXIT_FAILED)

    def hang_up(self) -> None:
        """Close the line to the worker, which ends a worker that has not ended."""
        self._has_hung_up = True
        self._line.close()

    def _log(self, message: str, level: int = logging.ERROR, **fields: Any) -> None:
        LOG.log(level, message, worker=self.process.pid, **fields)


def _work(settings: ServerSettings, listeners: list[Any], line: Connection) -> None:
    """Run one of several workers. The supervisor does without the import."""
    from twotower.serving.server.worker import work

    work(settings, listeners, line)


def _how(code: int | None) -> str:
    """Return how a process ended."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = "; the system may be out of memory" if name == "SIGKILL" else ""
    return f"signal {-code} ({name}){hint}"
