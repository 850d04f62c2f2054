"""The command itself: processes that share a port, follow one another, and leave in peace."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox import run_command
from servers import PATIENCE
from twotower.abandoned import sweep
from twotower.serving.bundle import open_bundle, write_bundle
from twotower.serving.client import Client
from twotower.serving.retriever import Retriever
from twotower.serving.server.journal import Journal
from twotower.training.pipeline import train

TOKEN = "write-me"
TWOTOWER = Path(sys.executable).with_name("twotower")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def served(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, "subprocess.Popen[bytes]", Path]]:
    """Two workers of ``twotower serve``, configured by a flag and by the environment."""
    port, log = free_port(), tmp_path_factory.mktemp("served") / "log"
    with log.open("wb") as opened:
        process = subprocess.Popen(
            [
                TWOTOWER,
                "serve",
                str(tiny_bundle),
                "--workers",
                "2",
                "--timeout",
                str(PATIENCE),
                "--journal",
                str(log) + ".journal",
            ],
            env={
                **os.environ,
                "TWOTOWER_PORT": str(port),
                "TWOTOWER_TOKEN": TOKEN,
                "TWOTOWER_ALLOWED_HOSTS": "a.example, b.example",
            },
            stderr=opened,
        )
    address = f"http://127.0.0.1:{port}"
    until = time.monotonic() + PATIENCE
    while b"ready" not in log.read_bytes() and time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield address, process, log
    if process.poll() is None:
        process.terminate()  # and its workers with it
        process.wait(PATIENCE)


def digests(address: str, tries: int) -> set[str]:
    """Ask anew each time, so that both workers get their turn."""
    return {httpx.get(f"{address}/model").json()["model"] for _ in range(tries)}


def wait_for_all(address: str, digest: str) -> None:
    """Wait until both workers answer with that model: each follows in its own time."""
    until = time.monotonic() + PATIENCE
    while digests(address, 30) != {digest}:
        assert time.monotonic() < until
        time.sleep(0.2)


def logged(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log that are whole; the first one is for people."""
    lines = log.read_text().rpartition("\n")[0].splitlines()[1:]
    return [json.loads(line) for line in lines]


def ready(log: Path) -> list[int]:
    """Return the workers that their parent knows to have been ready, in their order."""
    return [line["worker"] for line in logged(log) if line["message"] == "the worker is ready"]


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until a condition holds; how long that takes says nothing."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems share one socket")
def test_connections_that_come_at_once_go_to_all_workers(served: tuple[str, Any, Path]) -> None:
    address, _, log = served
    until = time.monotonic() + PATIENCE
    wait_for(lambda: len(ready(log)) == 2)
    workers = ready(log)

    def num_open() -> list[int]:
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in workers]

    before = num_open()
    port = int(address.rpartition(":")[2])
    connections = [socket.socket() for _ in range(40)]
    os.kill(workers[0], signal.SIGSTOP)  # it is busy, say, while they come
    for connection in connections:
        connection.connect(("127.0.0.1", port))
    time.sleep(0.5)
    os.kill(workers[0], signal.SIGCONT)
    while sum(num_open()) < sum(before) + 40 and time.monotonic() < until:
        time.sleep(0.05)
    more = [now - then for now, then in zip(num_open(), before, strict=True)]
    for connection in connections:
        connection.close()
    assert sorted(more)[-2] >= 5, more  # 20 and 20, more or less


def test_all_workers_follow_an_exchange_and_end_when_told(
    served: tuple[str, Any, Path], tiny_bundle: Path, small_world: Any, tmp_path: Path
) -> None:
    address, process, log = served
    other = train(
        small_world.interactions,
        items=small_world.items,
        out=tmp_path / "other",
        config={"training": {"epochs": 1, "solver": "gradient"}, "towers": {"dim": 16}},
        baselines=[],
    )
    until = time.monotonic() + PATIENCE
    while log.read_bytes().count(b'"ready"') < 2 and time.monotonic() < until:
        time.sleep(0.1)
    (before,) = digests(address, 8)
    for host, status in (("b.example", 200), ("c.example", 421)):
        assert httpx.get(f"{address}/health", headers={"host": host}).status_code == status
    with Client(address, token=TOKEN) as client:
        now = client.exchange_model(str(other.path))["model"]
    assert now != before
    wait_for_all(address, now)
    counted = httpx.get(f"{address}/metrics").text
    assert 'twotower_model_exchanges_total{ok="yes"} 2.0' in counted  # of both processes

    # The folder is replaced: nothing changes before it is asked for, then all change, one that is new, too.
    assert other.path is not None
    write_bundle(other.path, open_bundle(tiny_bundle))
    assert digests(address, 8) == {now}
    with Client(address, token=TOKEN) as client:
        again = client.exchange_model(str(other.path))["model"]
    assert again != now
    wait_for_all(address, again)
    line = {**open_bundle(tiny_bundle).items.frame.row(0, named=True), "item_id": 9001}
    with Client(address, token=TOKEN) as client:
        client.upsert_items(line)
    for _ in range(20):  # whichever worker it is
        with Client(address) as client:
            assert 9001 in client.recommend(7, k=300).item_ids

    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    requests = [line for line in lines if line["message"] == "request"]
    assert {"time", "level", "method", "route", "status", "ms", "request_id"} <= set(requests[0])
    assert not [line for line in lines if line["level"] == "error"]
    assert TOKEN not in log.read_text()


def test_a_snapshot_is_a_bundle_with_what_was_written(tiny_bundle: Path, tmp_path: Path) -> None:
    line = open_bundle(tiny_bundle).items.frame.row(0, named=True)
    written = tmp_path / "journal"
    journal = Journal(written)
    journal.append(
        [{"column": "item_id", "put": [{**line, "item_id": 9001}]}, {"delete": [3, "no such item"]}]
    )
    given = ("snapshot", str(tiny_bundle), "--out", str(tmp_path / "new"))
    told = run_command(given, tmp_path)
    assert told.code == 2
    assert "--journal must be what a server has written, got" in told.err
    done = run_command((*given, "--journal", str(written)), tmp_path)
    assert done.code == 0
    assert "200 items." in done.out
    ids = Retriever.open(tmp_path / "new").item_ids
    assert 9001 in ids
    assert 3 not in ids
    same = ("snapshot", str(tiny_bundle), "--out", str(tiny_bundle), "--journal", str(written))
    assert "must be another folder than the bundle" in run_command(same, tmp_path).err


def test_what_cannot_be_served_is_told_at_once(tmp_path: Path, tiny_bundle: Path) -> None:
    def said(*arguments: str) -> str:
        ended = run_command(("serve", *arguments), tmp_path)
        assert ended.code == 2
        return ended.err

    assert "must be a bundle, got no manifest.json there" in said(str(tmp_path))
    bundle = str(tiny_bundle)
    assert "--workers must be at least 1, got 0." in said(bundle, "--workers", "0")
    assert "--token must not be empty" in said(bundle, "--token", "")
    assert "--timeout must be above 0" in said(bundle, "--timeout", "0")
    assert "--port must be at most 65535" in said(bundle, "--port", "70000")
    assert "--waiting must be at least --batch, 64, got 8." in said(bundle, "--waiting", "8")


@pytest.fixture(scope="module")
def slow(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, "subprocess.Popen[bytes]", Path]]:
    """Two workers, each of whose processes takes seven seconds before it imports anything."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "temporary").mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys, time\ntime.sleep(7 * any('multiprocessing.' in a for a in sys.orig_argv))\n"
    )
    port, log = free_port(), folder / "log"
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    with log.open("wb") as opened:
        process = subprocess.Popen(
            [TWOTOWER, "serve", str(tiny_bundle), "--workers", "2", "--port", str(port)],
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder / "temporary")},
            stderr=opened,
        )
    yield port, process, log
    for pid in (process.pid, *ready(log)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def is_there(pid: int) -> bool:
    """Return whether a process has not ended; who does not wait for it leaves it as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_workers_that_are_slow_to_start_are_waited_for(
    slow: tuple[int, "subprocess.Popen[bytes]", Path],
) -> None:
    port, process, log = slow
    wait_for(lambda: len(ready(log)) == 2 or process.poll() is not None)
    assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200
    assert not [line for line in logged(log) if line["level"] == "error"]


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_worker_that_dies_is_replaced_and_the_log_says_why(
    slow: tuple[int, "subprocess.Popen[bytes]", Path],
) -> None:
    _, _, log = slow
    wait_for(lambda: len(ready(log)) == 2)
    killed = ready(log)[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: len(ready(log)) == 3)
    (told,) = [line for line in logged(log) if line["level"] == "error"]
    assert (told["message"], told["worker"]) == ("the worker ended", killed)
    assert told["reason"].startswith("signal 9 (SIGKILL)")


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_workers_end_with_their_parent_and_leave_what_the_next_start_removes(
    slow: tuple[int, "subprocess.Popen[bytes]", Path],
) -> None:
    port, process, log = slow
    wait_for(lambda: len(ready(log)) >= 2)
    temporary = log.parent / "temporary"
    sweep(temporary)
    assert len(list(temporary.iterdir())) == 1  # of a process that is there
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_there, ready(log))))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")
    assert len(list(temporary.iterdir())) == 1
    sweep(temporary)
    assert list(temporary.iterdir()) == []


def test_a_bundle_that_no_worker_can_open_ends_the_server(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, damaged)
    (damaged / "items.safetensors").write_bytes(b"nonsense")
    temporary = tmp_path / "temporary" / ("long" * 20)  # in which no process can be forked
    temporary.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    ended = run_command(("serve", str(damaged), "--workers", "2", "--port", "0"), tmp_path)
    assert ended.code == 2
    assert "items.safetensors" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert list(temporary.iterdir()) == []


def test_a_port_that_is_taken_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        if sys.platform == "linux":  # as another server with several workers has it
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        for workers in ("1", "2"):
            told = run_command(
                ("serve", str(tiny_bundle), "--port", port, "--workers", workers), tmp_path
            )
            assert told.code == 2
            assert f"must be an address to listen at, got 127.0.0.1:{port}: Address" in told.err
