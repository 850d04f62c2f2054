"""The supervisor in the process of the test, which plays the operator: it pauses, kills and stops."""

import json
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox import loggers_kept
from servers import PATIENCE
from twotower.errors import BundleError
from twotower.serving.server import supervisor
from twotower.serving.server.listening import bound
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.supervisor import Supervisor
from twotower.serving.server.telemetry import LOG
from twotower.serving.server.worker import work
from twotower.serving.server.worker_signs import ALIVE, FAILED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it pauses processes")


class Told(logging.Handler):
    """Keeps what the supervisor logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.getMessage(), getattr(record, "fields", {})))

    def wait_for(self, message: str, count: int = 1) -> dict[str, Any]:
        """Return the fields of the last of ``count`` lines, once they are there."""
        until = time.monotonic() + PATIENCE
        while True:
            found = [fields for said, fields in list(self.lines) if said == message]
            if len(found) >= count:
                return found[count - 1]
            assert time.monotonic() < until, self.lines
            time.sleep(0.02)


@pytest.fixture(autouse=True)
def told() -> Iterator[Told]:
    """What is logged."""
    handler = Told()
    LOG.logger.addHandler(handler)
    with loggers_kept():
        yield handler
    LOG.logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def hears_ctrl_c() -> Iterator[None]:
    """A shell's background job is started deaf to it, and a server that is deaf stays so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    """Act in a thread, and tell this process to stop in the end, whatever happens."""

    def run() -> None:
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_worker_that_hangs_is_replaced_and_ends_when_told(
    tiny_bundle: Path, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 20)  # in which no process is forked: each starts from nothing
    folder.mkdir()
    pointer = str(folder / "model.json")
    settings = ServerSettings(bundle=str(tiny_bundle), port=0, pointer=pointer)
    status: list[str] = []

    def act() -> None:
        address = told.wait_for("listening")["address"]
        first = told.wait_for("the worker is ready")["worker"]
        os.kill(first, signal.SIGSTOP)
        with monkeypatch.context() as patch:  # not before: a busy machine may be as slow
            patch.setattr(supervisor, "SECONDS_TO_ANSWER", 0.0)
            assert told.wait_for("the worker gives no sign and is killed")["worker"] == first
        ended = told.wait_for("the worker ended")
        assert ended == {"worker": first, "reason": "it gave no sign"}
        second = told.wait_for("the worker is ready", 2)["worker"]
        status.append(httpx.get(f"{address}/health").json()["status"])
        os.kill(second, signal.SIGSTOP)  # it cannot finish, and is killed
        monkeypatch.setattr(supervisor, "SECONDS_TO_FINISH", 0.0)

    thread = meanwhile(act)
    Supervisor(settings).run()
    thread.join()
    assert status == ["ok"]
    told.wait_for("workers did not finish in time and are killed")
    said = [message for message, _ in told.lines]
    assert said.count("the worker gives no sign and is killed") == 1


def test_a_worker_answers_until_told_and_gives_signs_of_life(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    ours, theirs = Pipe()
    pointer = tmp_path / "model.json"
    settings = ServerSettings(bundle=str(tiny_bundle), workers=2, pointer=str(pointer))
    sockets = bound("127.0.0.1", 0, several=True)
    said: list[Any] = []

    def act() -> None:
        assert ours.poll(PATIENCE)
        said.append(ours.recv_bytes())
        port = sockets[0].getsockname()[1]
        said.append(httpx.get(f"http://127.0.0.1:{port}/health").status_code)

    thread = meanwhile(act)
    with pytest.raises(SystemExit) as ended:
        work(settings, sockets, theirs)
    thread.join()
    assert said == [ALIVE, 200]
    assert ended.value.code == 1  # of Ctrl-C, which all processes of a terminal hear
    assert json.loads(pointer.read_text("utf-8"))["path"] == str(tiny_bundle.resolve())


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    settings = ServerSettings(bundle=str(tmp_path), workers=2, pointer=str(tmp_path / "model.json"))
    with pytest.raises(SystemExit):
        work(settings, [("127.0.0.1", 0)], theirs)
    said = ours.recv_bytes()
    assert said.startswith(FAILED)
    error = pickle.loads(said.removeprefix(FAILED))
    assert isinstance(error, BundleError)
    assert "no manifest.json there" in str(error)
    assert "In a worker:\nTraceback" in error.__notes__[0]
